//! What Outrigger promises: nothing is lost, nothing is wrong, nobody is disturbed, and one source has one copy.

#[path = "../support/mod.rs"]
mod support;

mod capped_collections;
mod deltas_are_exact;
mod first_copy;
mod full_sync;
mod healthy_is_never_false;
mod into_postgres;
mod local_is_proven;
mod local_wins;
mod nothing_is_lost;
mod odd_schema;
mod odd_values;
mod one_agent_one_copy;
mod one_collection_alone;
mod outbox;
mod outbox_by_the_agent;
mod outbox_of_two;
mod postgres_by_the_agent;
mod postgres_is_compared;
mod postgres_tables;
mod renames;
mod restore;
mod schema;
mod seventeen_properties;
mod the_application_never_notices;
mod the_copy_converges;
mod transactions;
mod unique_values_change_hands;
mod whose_is_what;
