-- Events in a third less: the hash as bytes, the one before it not kept twice, and how an event left its run (two words
-- of its data) as a number. `domain.event.shortened` writes them, `lengthened` reads them; what a release of before
-- wrote stays as it is, and whatever stands in `hash` or `prev_hash` is what counts.
alter table events add column digest bytea, add column stands smallint;
alter table events alter column prev_hash set default '', alter column hash set default '';
