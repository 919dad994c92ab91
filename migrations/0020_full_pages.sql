-- Room for updates in place was kept in each page of runs, but none is ever made there: each moves the run's status, due
-- time or lease, and these are indexed.
alter table runs reset (fillfactor);
