-- Chores that one worker of all does: whoever moves `due_at` on has the turn.
create table chores (
    name   text primary key,
    due_at timestamptz not null
);

-- A run's end in the purge looks for its files by the run alone; the index by tenant does not help with that.
create index files_of_run on files (run_id);
