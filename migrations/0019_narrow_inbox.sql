-- Open approvals of one user or one session, without a walk along all of the tenant's.
create index approvals_by_user on approvals (tenant, user_id, expires_at) where status = 'pending' and user_id is not null;
create index approvals_by_session on approvals (tenant, session_id) where status = 'pending' and session_id is not null;
