-- Who may decide, and how much a tenant may start.

-- Limits of a tenant; null is no limit. A tenant without a row has none.
create table tenants (
    name              text primary key,
    starts_per_minute integer check (starts_per_minute >= 0),
    live_runs         integer check (live_runs >= 0),
    retention_days    integer check (retention_days > 0),
    updated_at        timestamptz not null default now()
);

create table delegations (
    approval_id uuid not null references approvals (id) on delete cascade,
    n           integer not null,
    tenant      text not null,
    actor       text not null,
    users       text[] not null,
    groups      text[] not null,
    reason      text,
    at          timestamptz not null,
    primary key (approval_id, n)
);

-- Links by which one reviewer decides once: only a keyed hash of the token is kept.
create table links (
    hash           bytea primary key,
    tenant         text not null,
    approval_id    uuid not null references approvals (id) on delete cascade,
    reviewer       text not null,
    payload_sha256 text,
    made_by        text not null,
    created_at     timestamptz not null default now(),
    expires_at     timestamptz not null,
    used_at        timestamptz
);
create index links_by_approval on links (approval_id);

-- The first characters of a key, for people to tell which one they have in hand.
alter table api_keys add column prefix text;
create index api_keys_by_subject on api_keys (tenant, subject);
