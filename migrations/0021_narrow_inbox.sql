-- Open approvals of one user or one session, without a walk along all of the tenant's.
create index approvals_by_user on approvals (tenant, user_id, expires_at) where status = 'pending' and user_id is not null;
create index approvals_by_session on approvals (tenant, session_id) where status = 'pending' and session_id is not null;

-- Most approvals name nobody: these stand in no index of names.
create index approvals_naming_users on approvals using gin ((reviewers->'users'))
    where status = 'pending' and reviewers->'users' <> '[]';
create index approvals_naming_groups on approvals using gin ((reviewers->'groups'))
    where status = 'pending' and reviewers->'groups' <> '[]';

create or replace function hitl_named(of_tenant text, who text, of_groups text[]) returns setof uuid
language sql stable security definer set search_path = pg_catalog, pg_temp
begin atomic
    select id from approvals
    where tenant = of_tenant and status = 'pending' and reviewers->'users' <> '[]' and reviewers->'users' ? who
      and current_setting('hitl.tenant', true) in ('*', '=' || of_tenant)
    union
    select id from approvals
    where tenant = of_tenant and status = 'pending' and reviewers->'groups' <> '[]'
      and reviewers->'groups' ?| of_groups
      and current_setting('hitl.tenant', true) in ('*', '=' || of_tenant);
end;

drop index approvals_for_users, approvals_for_groups;
