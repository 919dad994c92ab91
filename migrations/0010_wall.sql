-- What the service itself may do to its database: a role that appends events and cannot change them, and sees one
-- tenant at a time. `hitl migrate` calls hitl_role_ready() and hitl_wall() at its end, for tables of later releases too.

-- Of this database alone: a role belongs to the whole server, and another database's service must not hold it.
create function hitl_role() returns name language sql stable
return ('hitl_service_' || case when octet_length(current_database()::text) <= 50 then current_database()::text
                                else md5(current_database()::text) end)::name;

-- The one way to delete a run, for a role that may not delete: what is over for long enough, at least a day.
create function hitl_purge_runs(wanted uuid[], of_tenant text, kept interval)
returns table (run_id uuid, seq bigint, hash text)
language sql security definer set search_path = pg_catalog, pg_temp
begin atomic
    delete from runs where id = any (array(
        select id from runs
        where id = any (wanted) and tenant = of_tenant and status in ('completed', 'failed', 'cancelled')
          and finished_at < now() - greatest(kept, interval '1 day')
          and current_setting('hitl.tenant', true) in ('*', '=' || of_tenant)
        for update skip locked))
    returning id, event_seq, event_hash;
end;

-- Likewise for decided questions that belong to no run.
create function hitl_purge_questions(of_tenant text, kept interval, at_most integer) returns setof uuid
language sql security definer set search_path = pg_catalog, pg_temp
begin atomic
    delete from approvals where id = any (array(
        select id from approvals
        where tenant = of_tenant and run_id is null and decided_at < now() - greatest(kept, interval '1 day')
          and current_setting('hitl.tenant', true) in ('*', '=' || of_tenant)
        order by decided_at limit at_most for update skip locked))
    returning id;
end;

revoke execute on function hitl_purge_runs(uuid[], text, interval) from public;
revoke execute on function hitl_purge_questions(text, interval, integer) from public;

-- What the role may do to a table. What is the record, it only adds to; what a purge removes, it does not delete.
create function hitl_rights(target name) returns text[] language sql immutable
return case
    when target = 'schema_migrations' then array['select']
    when target in ('events', 'decisions', 'delegations', 'steps', 'questions', 'anchors', 'anchored_heads',
                    'purged_runs', 'erased_content') then array['select', 'insert']
    when target = 'files' then array['select', 'insert', 'delete']
    when target in ('runs', 'run_documents', 'approvals', 'provider_calls', 'provider_cancels', 'links', 'api_keys',
                    'tenants', 'delivery_lines', 'erasures') then array['select', 'insert', 'update']
    else array['select', 'insert', 'update', 'delete'] end;

-- What of the record is content: it may be erased, while who did what and when stays as it was.
create function hitl_erasable(target name) returns name[] language sql immutable
return case target when 'decisions' then array['reason', 'edits', 'changes', 'nonce']
                   when 'delegations' then array['reason'] else array[]::name[] end;

-- Make the role, if this login may; let this login take it on. Null, or what is in the way.
create function hitl_role_ready() returns text language plpgsql as $$
declare
    ours name := hitl_role();
    before text := current_setting('role');
    door regprocedure;
begin
    begin
        if not exists (select from pg_roles where rolname = ours) then
            execute format('create role %I nologin', ours);
        end if;
    exception
        when insufficient_privilege then return format('%I may not create the role %I', current_user, ours);
        when duplicate_object or unique_violation then null;
    end;
    execute format('grant usage on schema %I to %I', current_schema(), ours);
    for door in select oid::regprocedure from pg_proc
                where prosecdef and pronamespace = current_schema()::regnamespace
                  and proname in ('hitl_purge_runs', 'hitl_purge_questions', 'blank_progress', 'hitl_named')
                  and not has_function_privilege(ours, oid, 'execute') loop
        execute format('grant execute on function %s to %I', door, ours);
    end loop;
    begin
        perform set_config('role', ours::text, true);
        perform set_config('role', before, true);
    exception when insufficient_privilege then
        begin
            execute format('grant %I to %I', ours, current_user);
        exception when insufficient_privilege then
            return format('%I may not take on the role %I', current_user, ours);
        end;
    end;
    return null;
end $$;

-- The rights of the role on a table, and its rows by tenant: the setting is '=' and the tenant's name, or '*' for
-- what works for all of them; with nothing set there is nothing to see. Does only what is missing: DDL locks.
-- Written as a number that is not 0, since the planner then expects nearly every row to be seen, and plans as it would
-- without; of an OR it would expect next to none.
create function hitl_wall(target regclass) returns void language plpgsql as $$
declare
    own name := (select relname from pg_class where oid = target);
    keyed name := case own when 'tenants' then 'name' else 'tenant' end;
    wanted text[] := hitl_rights(own);
    a_right text;
    a_column name;
begin
    if exists (select from pg_attribute where attrelid = target and attname = keyed and not attisdropped)
       and not exists (select from pg_policy where polrelid = target and polname = 'hitl_tenant') then
        execute format('alter table %s enable row level security', target);
        execute format($sql$create policy hitl_tenant on %s using (
            case when current_setting('hitl.tenant', true) = '*' then 1
                 when current_setting('hitl.tenant', true) = '=' || %I then 1 else 0 end <> 0)$sql$, target, keyed);
    end if;
    if exists (select from pg_roles where rolname = hitl_role()) then
        foreach a_right in array array['select', 'insert', 'update', 'delete', 'truncate'] loop
            if a_right = any (wanted) <> has_table_privilege(hitl_role(), target, a_right) then
                if a_right = any (wanted) then
                    execute format('grant %s on %s to %I', a_right, target, hitl_role());
                else
                    execute format('revoke %s on %s from %I', a_right, target, hitl_role());
                end if;
            end if;
        end loop;
        for a_column in select attname from pg_attribute
                        where attrelid = target and attname = any (hitl_erasable(own)) and not attisdropped
                          and not has_column_privilege(hitl_role(), target, attname, 'update') loop
            execute format('grant update (%I) on %s to %I', a_column, target, hitl_role());
        end loop;
    end if;
end $$;

-- Bytes stored: the limit, what was counted last, and when to count again.
alter table tenants
    add column stored_bytes bigint check (stored_bytes >= 0),
    add column stored_bytes_now bigint not null default 0,
    add column measure_at timestamptz;
