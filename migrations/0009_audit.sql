-- Who decided, and what makes the record hold: how each decision was authenticated, who saw what when, anchors over
-- the chains, and what a purge leaves behind.

alter table decisions
    add column role             text,
    add column authenticated_by text,
    add column credential       text,
    add column first_seen_at    timestamptz,
    add column position         integer,
    add column quorum           integer,
    add column changes          json,
    -- what the hashes of reason and edits in the event are salted with: without it they say nothing
    add column nonce            text;

alter table ws_tickets
    add column authenticated_by text,
    add column credential       text;

-- When somebody who may decide first opened an approval. No reference to `approvals`: its check would wait for the
-- decision that holds the row, and a read must wait for nobody.
create table approval_views (
    approval_id   uuid not null,
    subject       text not null,
    tenant        text not null,
    first_seen_at timestamptz not null default now(),
    channel       text not null,
    primary key (approval_id, subject)
);
create index approval_views_over on approval_views (tenant, first_seen_at);

-- Anchors: signed hashes over the last events of the runs that changed since the one before. `since` and `seen` are
-- snapshots: which changes it looked for, and what the next one need not look at; `beyond` is the last run of a page
-- that was not the last.
create table anchors (
    n          bigint primary key,
    at         timestamptz not null,
    heads      integer not null,
    root       text not null,
    prev_hash  text not null,
    hash       text not null,
    key_id     text not null,
    public_key text not null,
    signature  text not null,
    since      text,
    seen       text not null,
    beyond     uuid
);

create table anchored_heads (
    n      bigint not null references anchors (n) on delete cascade,
    run_id uuid not null,
    tenant text not null,
    seq    bigint not null,
    hash   text not null,
    primary key (run_id, n)
);
create index anchored_heads_by_anchor on anchored_heads (n);

-- What a purge leaves of a run: how far its chain went, signed, so that nobody passes off a deletion as a purge.
create table purged_runs (
    run_id     uuid primary key,
    tenant     text not null,
    seq        bigint not null,
    hash       text not null,
    at         timestamptz not null,
    key_id     text not null,
    public_key text not null,
    signature  text not null
);
