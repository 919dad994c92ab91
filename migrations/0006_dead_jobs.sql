-- Jobs in Redis that no worker could run: what they were called and why, never what was in them.
create table dead_jobs (
    id        bigint generated always as identity primary key,
    job_id    text not null,
    cause     text not null,
    worker_id text not null,
    at        timestamptz not null default now()
);
