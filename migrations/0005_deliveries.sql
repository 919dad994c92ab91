-- Messages to the outside. A line is what goes to one target about one run (or one question that belongs to no
-- run): it is sent in order, by whoever holds the line's lease. Its messages are rows of `deliveries`.

-- The host and port of a URL: what a callback is limited, listed and logged by, since the rest may be secret.
create function url_host(url text) returns text language sql immutable parallel safe as $$
    select coalesce(lower(substring(url from '^[^:/?#]+://(?:[^/?#]*@)?([^/?#@]*)')), '')
$$;

create table delivery_lines (
    subject     uuid not null,
    kind        text not null check (kind in ('webhook','relay')),
    tenant      text not null,
    run_id      uuid references runs (id) on delete cascade,
    approval_id uuid references approvals (id) on delete cascade,
    target      text not null,
    due_at      timestamptz,
    lease_id    uuid,
    lease_until timestamptz,
    primary key (subject, kind),
    constraint line_is_about_one check ((run_id is null) <> (approval_id is null))
) with (fillfactor = 80);

create index delivery_lines_due on delivery_lines (kind, due_at) where due_at is not null;
create index delivery_lines_by_run on delivery_lines (run_id) where run_id is not null;
create index delivery_lines_by_approval on delivery_lines (approval_id) where approval_id is not null;

create table deliveries (
    id           uuid primary key,
    n            bigint generated always as identity,
    tenant       text not null,
    subject      uuid not null,
    kind         text not null,
    seq          bigint,
    type         text not null,
    approval_id  uuid,
    status       text not null default 'waiting' check (status in ('waiting','delivered','dead')),
    tries        integer not null default 0,
    error        text,
    body         bytea,
    created_at   timestamptz not null,
    tried_at     timestamptz,
    delivered_at timestamptz,
    foreign key (subject, kind) references delivery_lines (subject, kind) on delete cascade
) with (fillfactor = 80);

create index deliveries_in_line on deliveries (subject, kind, n) where status = 'waiting';
create index deliveries_by_line on deliveries (subject, kind);
create index deliveries_list on deliveries (n desc) where kind = 'webhook';
create index deliveries_open on deliveries (tenant, status) where status <> 'delivered';

-- Secrets that sign a tenant's webhooks: one is current, an earlier one signs beside it until it retires.
create table webhook_secrets (
    id         uuid primary key,
    tenant     text not null,
    sealed     bytea not null,
    created_at timestamptz not null default now(),
    retires_at timestamptz
);

create unique index webhook_secrets_current on webhook_secrets (tenant) where retires_at is null;
create index webhook_secrets_by_tenant on webhook_secrets (tenant);
