-- Calls that a provider works on: looked at again, cancelled where nobody wants them any more.

alter table runs add column build_tries smallint not null default 0;

alter table provider_calls
    add column looks integer not null default 0,
    add column copy_tries smallint not null default 0;

-- What is to be ended at a provider. `due_at` null: it is over there, or was given up.
create table provider_cancels (
    run_id       uuid not null references runs (id) on delete cascade,
    number       integer not null,
    tenant       text not null,
    provider_ref text not null,
    due_at       timestamptz,
    tries        integer not null default 0,
    primary key (run_id, number, provider_ref)
);

create index provider_cancels_due on provider_cancels (due_at) where due_at is not null;
