-- Events as a stream over many runs: `xid` says which transaction wrote a row, so that a reader who keeps a
-- snapshot can ask for exactly what it has not seen, whatever order the commits land in. Rows of before are
-- seen by every snapshot.

alter table events add column xid xid8 not null default '0';
alter table events alter column xid set default pg_current_xact_id();
create index events_xid on events (xid);

-- Questions that belong to no run have no event; inboxes learn of them here.
create table questions (
    approval_id uuid primary key references approvals (id) on delete cascade,
    tenant      text not null,
    xid         xid8 not null default pg_current_xact_id()
);
create index questions_xid on questions (xid);

-- Tickets of browsers for one WebSocket handshake: only a hash is kept, and it is deleted when it is used.
create table ws_tickets (
    hash       bytea primary key,
    tenant     text not null,
    subject    text not null,
    role       text not null check (role in ('submitter','reviewer','admin','service')),
    groups     text[] not null default '{}',
    key_id     uuid references api_keys (id) on delete cascade,
    expires_at timestamptz not null
);
create index ws_tickets_expired on ws_tickets (expires_at);
