//! What a person or a script sees and sets: the CLI, the API, the settings, the alerts, the deployment.

#[path = "../support/mod.rs"]
mod support;

mod admin_api;
mod alerts;
mod answers;
mod api_contract;
mod book;
mod cli;
mod commands;
mod config;
mod dashboard;
mod dashboard_at_night;
mod dashboard_of_many;
mod deployment;
mod embedding;
mod every_kind;
mod every_setting_is_respected;
mod failures_explain_themselves;
mod foreign_suites;
mod guest_of_its_host;
mod kubernetes;
mod metrics_tell_the_truth;
mod migration;
mod newcomer;
mod outbox_is_checked;
mod outbox_table;
mod package;
mod pauses;
mod postgres_is_checked;
mod postgres_schema;
mod postgres_settings;
mod preflight;
mod release;
mod security;
mod settings_by_their_effect;
mod the_tests_themselves;
mod the_watchers_themselves;
mod version_matrix;
