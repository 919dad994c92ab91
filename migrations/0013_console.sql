-- Sessions of the console: only a keyed hash of the cookie's token is kept. One ends with its key, or at `expires_at`.
create table console_sessions (
    hash       bytea primary key,
    tenant     text not null,
    subject    text not null,
    role       text not null check (role in ('submitter','reviewer','admin','service')),
    groups     text[] not null default '{}',
    key_id     uuid references api_keys (id) on delete cascade,
    authenticated_by text not null,
    credential text,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null
);
create index console_sessions_expired on console_sessions (expires_at);
create index console_sessions_by_key on console_sessions (key_id) where key_id is not null;

-- What a person keeps to look at again: filters of the inbox under a name.
create table console_views (
    tenant     text not null,
    subject    text not null,
    name       text not null,
    query      text not null,
    created_at timestamptz not null default now(),
    primary key (tenant, subject, name)
);

-- The inbox of one person: what anybody may decide in the order of deadlines, and what names them.
create index approvals_for_anyone on approvals (tenant, expires_at, id)
    where status = 'pending' and reviewers->'users' = '[]' and reviewers->'groups' = '[]';
create index approvals_for_users on approvals using gin ((reviewers->'users')) where status = 'pending';
create index approvals_for_groups on approvals using gin ((reviewers->'groups')) where status = 'pending';

-- What names a person or one of their groups. It runs as the tables' owner: under row-level security no index on
-- what stands inside jsonb may be used, since its operators are not known to keep to themselves what they see.
create function hitl_named(of_tenant text, who text, of_groups text[]) returns setof uuid
language sql stable security definer set search_path = pg_catalog, pg_temp
begin atomic
    select id from approvals
    where tenant = of_tenant and status = 'pending'
      and (reviewers->'users' ? who or reviewers->'groups' ?| of_groups)
      and current_setting('hitl.tenant', true) in ('*', '=' || of_tenant);
end;

revoke execute on function hitl_named(text, text, text[]) from public;
