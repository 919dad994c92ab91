-- Content is sealed under a key of its run, or of its question where that belongs to no run. Whoever deletes the key
-- deletes the content, in every copy of the database that has no copy of this table: leave it out of backups that
-- are kept for long. `wrapped`: the key, sealed by one that derives from the master secret.
create table content_keys (
    subject uuid primary key,
    tenant  text not null,
    wrapped bytea not null
);

-- Whose content was erased, who asked for it, and when. `runs` and `questions` are counts.
create table erasures (
    id        uuid primary key,
    tenant    text not null,
    user_id   text not null,
    actor     text not null,
    runs      integer not null,
    questions integer not null,
    files     integer not null,
    at        timestamptz not null default now()
);
create index erasures_by_tenant on erasures (tenant, at);

-- What an erasure took the content of: runs, and questions that belong to no run. No content comes back to it.
create table erased_content (
    subject    uuid primary key,
    tenant     text not null,
    erasure_id uuid not null references erasures (id),
    at         timestamptz not null default now()
);
create index erased_content_by_erasure on erased_content (erasure_id);

-- What a provider told of its answer so far is content inside an event, and sealed there. Rows of before this
-- migration are not: this blanks them, of runs whose content was erased, and nothing else of any event. It runs as
-- its owner, so that the service's own role needs no right to change events.
create function blank_progress(run_ids uuid[]) returns bigint
language sql security definer set search_path = pg_catalog, pg_temp
begin atomic
    with blanked as (
        update events e set data = json_build_object('content_erased', true,
            'run_status', e.data->'run_status', 'current_step', e.data->'current_step')
        from erased_content x
        where e.run_id = any (run_ids) and x.subject = e.run_id and e.type = 'provider.progress'
          and e.data->>'sealed' is null and e.data->>'content_erased' is null
        returning 1)
    select count(*) from blanked;
end;

revoke execute on function blank_progress(uuid[]) from public;

-- A key goes with what it opens, whoever deletes that.
do $do$
begin
    execute format($f$
        create function %1$I.forget_keys() returns trigger language plpgsql
            set search_path = %1$I, pg_catalog, pg_temp as $$
        begin
            delete from content_keys where subject = old.id;
            delete from erased_content where subject = old.id;
            return null;
        end $$ $f$, current_schema());
end $do$;

create trigger forget_keys after delete on runs for each row execute function forget_keys();
create trigger forget_keys after delete on approvals for each row when (old.run_id is null) execute function forget_keys();
