-- What the console's pages of runs and operations look at. No table of counts: nobody who starts or decides writes more
-- than their own rows.

-- Who waits longest; written once when an approval opens, not when it is decided.
create index approvals_waiting on approvals (tenant, created_at) where status = 'pending';

-- What was closed when, and for how long it had been open, without looking at the rows.
create index approvals_decided on approvals (tenant, decided_at) include (created_at, status)
    where decided_at is not null;

-- Messages that are not delivered, now in the order they came in: the newest of a state are found without the rest.
create index deliveries_standing on deliveries (tenant, status, n) where status <> 'delivered';
drop index deliveries_open;
