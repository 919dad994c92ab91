-- The truth. Redis only hints at it.

create table runs (
    id              uuid primary key,
    tenant          text not null,
    status          text not null check (status in ('queued','running','awaiting_human','awaiting_provider','paused','completed','failed','cancelled')),
    step            text not null check (step in ('information_review','payload_review','api_call','response_review','completed')),
    version         bigint not null default 1,
    fencing_token   bigint not null default 1,
    lease_until     timestamptz,
    worker_id       text,
    due_at          timestamptz,
    armed           boolean not null default false,
    paused_at       timestamptz,
    status_since    timestamptz not null,
    woken_at        timestamptz not null,
    claimed_at      timestamptz,
    released_at     timestamptz,
    event_seq       bigint not null default 0,
    event_hash      text not null default '',
    call_no         integer not null default 1,
    completed_steps integer not null default 0,
    asked           jsonb not null default '{}',
    payload_sha256  text,
    provider        text not null,
    tool            text not null,
    submitter       text not null,
    user_id         text,
    session_id      text,
    priority        smallint not null default 0,
    queues          boolean not null default false,
    created_at      timestamptz not null,
    updated_at      timestamptz not null,
    deadline_at     timestamptz,
    finished_at     timestamptz,
    queue_ms        bigint not null default 0,
    human_ms        bigint not null default 0,
    provider_ms     bigint not null default 0,
    estimated_usd   double precision,
    actual_usd      double precision,
    error           jsonb,
    request_id      text,
    traceparent     text,
    state_version   smallint not null default 1,
    -- who holds a run is always known, and a final run is held by nobody and due never
    constraint running_has_lease check (status <> 'running' or (lease_until is not null and worker_id is not null)),
    constraint final_is_final check (status not in ('completed','failed','cancelled')
        or (lease_until is null and due_at is null and finished_at is not null)),
    constraint awaiting_holds_no_lease check (status not in ('queued','awaiting_human') or lease_until is null),
    constraint paused_says_when check ((status = 'paused') = (paused_at is not null))
) with (fillfactor = 80);

create index runs_due on runs (due_at) where due_at is not null;
create index runs_leased on runs (lease_until) where lease_until is not null;
create index runs_deadline on runs (deadline_at) where deadline_at is not null and status not in ('completed','failed','cancelled');
create index runs_list on runs (tenant, created_at desc, id desc);
create index runs_live_session on runs (tenant, session_id, created_at) where session_id is not null and status not in ('completed','failed','cancelled');
create index runs_by_session on runs (tenant, session_id, created_at desc, id desc) where session_id is not null;
create index runs_by_user on runs (tenant, user_id, created_at desc, id desc) where user_id is not null;
create index runs_by_status on runs (tenant, status, created_at desc, id desc);

-- What is large lives beside the hot row. `json` keeps the text as it came; `jsonb` would not take \u0000
-- and would reorder what a human is shown.
create table run_documents (
    run_id       uuid primary key references runs (id) on delete cascade,
    tenant       text not null,
    run_input    json not null,
    hitl_config  json not null,
    tool_config  json not null,
    sealed       bytea,
    description  json,
    payload      json,
    output       json,
    raw_response json,
    result       json,
    callback_url text
);

create table steps (
    tenant    text not null,
    run_id    uuid not null references runs (id) on delete cascade,
    n         integer not null,
    step      text not null,
    status    text not null check (status in ('completed','failed','cancelled')),
    at        timestamptz not null,
    actor     text not null,
    message   text not null,
    primary key (run_id, n)
);

create table approvals (
    id              uuid primary key,
    tenant          text not null,
    run_id          uuid references runs (id) on delete cascade,
    checkpoint_type text not null,
    status          text not null check (status in ('pending','approved','edited','rejected','retried','expired','cancelled')),
    reasons         text[] not null,
    message         text not null,
    context         json not null,
    schema          json,
    payload_sha256  text,
    user_id         text,
    session_id      text,
    submitter       text not null,
    reviewers       jsonb not null,
    on_timeout      text not null check (on_timeout in ('reject','approve','escalate')),
    timeout_s       double precision not null check (timeout_s > 0),
    escalate_to     jsonb,
    escalated_at    timestamptz,
    remind_after_s  double precision,
    remind_at       timestamptz,
    created_at      timestamptz not null,
    expires_at      timestamptz not null,
    clock_stopped_at timestamptz,
    timer_no        integer not null default 1,
    armed           boolean not null default false,
    edited          boolean not null default false,
    claimed_by      text,
    claimed_until   timestamptz,
    decided_at      timestamptz,
    callback_url    text,
    version         bigint not null default 1,
    constraint pending_is_undecided check ((status = 'pending') = (decided_at is null))
);

create unique index approvals_one_open on approvals (run_id, checkpoint_type) where status = 'pending' and run_id is not null;
create index approvals_by_run on approvals (run_id, created_at);
create index approvals_inbox on approvals (tenant, expires_at, id) where status = 'pending';
create index approvals_due on approvals (expires_at) where status = 'pending' and clock_stopped_at is null;
create index approvals_remind on approvals (remind_at) where status = 'pending' and clock_stopped_at is null and remind_at is not null;
create index approvals_unarmed on approvals (expires_at) where status = 'pending' and clock_stopped_at is null and not armed;

create table decisions (
    approval_id    uuid not null references approvals (id) on delete cascade,
    n              integer not null,
    tenant         text not null,
    actor          text not null,
    action         text not null check (action in ('approve','edit','reject','retry')),
    reason         text,
    edits          json,
    payload_sha256 text,
    at             timestamptz not null,
    channel        text not null,
    primary key (approval_id, n)
);

create table provider_calls (
    run_id          uuid not null references runs (id) on delete cascade,
    number          integer not null,
    tenant          text not null,
    idempotency_key text not null unique,
    payload_sha256  text not null,
    status          text not null check (status in ('intent','retry','accepted','answered','invalid','unknown','rejected','exhausted','failed')),
    tries           integer not null default 1,
    provider_ref    text,
    started_at      timestamptz not null,
    finished_at     timestamptz,
    deadline_at     timestamptz,
    output          json,
    raw             json,
    issues          json,
    problem         text,
    quality         double precision,
    safety_flags    text[] not null default '{}',
    cost_usd        double precision,
    primary key (run_id, number)
);

create table events (
    run_id    uuid not null references runs (id) on delete cascade,
    seq       bigint not null,
    tenant    text not null,
    type      text not null,
    at        timestamptz not null,
    actor     text not null,
    data      json not null,
    prev_hash text not null,
    hash      text not null,
    primary key (run_id, seq)
);

create table idempotency_keys (
    tenant     text not null,
    key        text not null,
    body_hash  text not null,
    answer     json,
    created_at timestamptz not null default now(),
    primary key (tenant, key)
);

create table api_keys (
    id         uuid primary key,
    tenant     text not null,
    name       text not null,
    role       text not null check (role in ('submitter','reviewer','admin','service')),
    subject    text not null,
    groups     text[] not null default '{}',
    hash       bytea not null unique,
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    used_at    timestamptz
);

create table workers (
    id         text primary key,
    jobs       integer not null,
    max_jobs   integer not null,
    lock_id    integer,
    started_at timestamptz not null default now(),
    seen_at    timestamptz not null default now()
);
