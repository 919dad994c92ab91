-- Whether anybody is called back about a run, beside its hot row: most have nobody, and then no write of theirs
-- looks for messages to the outside. Null, as an older release leaves it: not known.
alter table runs add column calls_back boolean;
