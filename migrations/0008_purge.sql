-- What is over, by age: for the purge of a tenant whose record is kept for so many days.
create index runs_over on runs (tenant, finished_at) where finished_at is not null;
create index approvals_over on approvals (tenant, decided_at) where run_id is null and decided_at is not null;
