-- The inbox is walked along `approvals_inbox`, in the order of deadlines, whoever is named: where every approval names
-- a group, finding a member's by their names and sorting them took a second. These indexes are then only a cost to
-- whoever asks and decides. `hitl_named` stays for processes of the release before, while they are still there.
drop index approvals_for_anyone;
drop index approvals_for_users;
drop index approvals_for_groups;
