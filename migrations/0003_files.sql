-- Output files that were copied before their provider deletes them; the bytes lie in the file store.

create table files (
    id         uuid primary key,
    tenant     text not null,
    run_id     uuid not null references runs (id) on delete cascade,
    name       text not null,
    media_type text not null,
    size       bigint not null,
    sha256     text not null,
    location   text not null,
    created_at timestamptz not null
);

create index files_by_run on files (tenant, run_id);
