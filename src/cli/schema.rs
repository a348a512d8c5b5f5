//! `outrigger schema`: the tables that the collections have in PostgreSQL.
//!
//! What is printed is SQL: the statements, and the drafts of columns as comments between them.

use std::{process::ExitCode as Code, time::Duration};

use bson::{RawDocumentBuf, rawdoc};

use super::{
    args::{SchemaArgs, check_patterns},
    show,
};
use crate::{
    agent::connect_local,
    config::{Config, ConfigError},
    model::namespace::Namespace,
    mongo::{Mongo, MongoError, documents},
    observe::report::{ExitCode, Failure},
    side::MongoSide,
    sink::{
        SinkError,
        postgres::{
            change::{self, Change},
            connect::{Failed, Postgres, Session},
            ddl,
            draft::Sample,
            table::Table,
        },
    },
    source::SourceError,
    sync::SyncError,
};

/// For one statement.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Exit code 0 when everything was printed, and made where that was asked for.
pub async fn run(config: &Config, args: SchemaArgs) -> Result<Code, Failure> {
    config.check_is_postgres()?;
    let scope = check_patterns(&args.ns)?;
    crate::observe::logging::start("error", config.log.format);
    // Before anything is read: that it cannot be made had better be known first.
    let mut target = if args.apply { Some(connect(config).await?) } else { None };
    let local = connect_local(config).await?;
    let filter = config.filter()?;
    let listing = MongoSide::source(&local).list(&filter).await.map_err(SyncError::from)?;
    let mut tables = Vec::new();
    show::line("-- Outrigger's own schema");
    ddl::own().iter().for_each(print);
    for view in listing.views.iter().filter(|view| scope.matches(&view.ns)) {
        show::line(format!("\n-- {} is a view, and is not carried", view.ns));
    }
    for collection in &listing.collections {
        let ns = &collection.ns;
        if !scope.matches(ns) {
            continue;
        }
        let table = Table::of(ns, &config.mapping);
        show::line(format!("\n-- {ns}"));
        if (&*table.schema, &*table.name) != (ns.db(), ns.coll()) {
            show::line(format!(
                "-- is {}: PostgreSQL cannot have it by its own name",
                table.quoted()
            ));
        }
        ddl::of_table(&table).iter().for_each(print);
        tables.push(table);
        let sample = sample(&local, ns, args.sample).await.map_err(SourceError::from)?;
        let draft = sample.draft(ns, &config.mapping);
        if !draft.is_empty() {
            let documents = sample.documents();
            show::line(format!(
                "\n-- a draft for the configuration, of a sample of {documents} documents:"
            ));
            for line in draft.trim_end().lines() {
                show::line(format!("-- {line}").trim_end());
            }
        }
    }
    let undeclared = |ns: &&Namespace| !listing.collections.iter().any(|of| of.ns == **ns);
    let named = config.mapping.columns.iter().map(|(ns, _)| ns);
    let named = named.chain(config.mapping.children.iter().map(|(ns, _)| ns));
    for ns in named.filter(undeclared).collect::<std::collections::BTreeSet<_>>() {
        eprintln!(
            "warning: columns are declared for {ns}, which is not there, or not chosen by `namespaces`"
        );
    }
    if let Some(session) = &mut target {
        for table in &tables {
            change::apply(session, None, Change::Make(table)).await.map_err(refused)?;
        }
        eprintln!("made: {} tables", tables.len());
    }
    Ok(Code::SUCCESS)
}

fn print(statement: &String) {
    show::line(format!("{statement};"));
}

async fn connect(config: &Config) -> Result<Session, Failure> {
    let uri = config.postgres_uri()?;
    let postgres = Postgres::new(uri.expose(), 1, TIMEOUT)
        .map_err(|error| ConfigError::invalid("postgres.uri", error.to_string()))?;
    postgres.session().await.map_err(failure)
}

fn failure(failed: Failed) -> Failure {
    refused(failed.into())
}

fn refused(error: SinkError) -> Failure {
    let (problem, hint) = match error {
        SinkError::Denied(problem) => (
            problem,
            "it needs a database of its own, and a user who owns it: `CREATE USER …; CREATE DATABASE … OWNER …`",
        ),
        SinkError::Rejected(problem) | SinkError::Held(problem) | SinkError::Gone(problem) => (
            problem,
            "something else has this name in PostgreSQL; rename it there, or leave the collection out by `namespaces.exclude`",
        ),
        SinkError::Unavailable(problem)
        | SinkError::Unanswered(problem)
        | SinkError::DropUnanswered { problem, .. } => (
            problem,
            "check that PostgreSQL runs, and the address in POSTGRES_URI or `postgres.uri_file`; then try again",
        ),
    };
    Failure::new(ExitCode::Atlas, anyhow::anyhow!("PostgreSQL: {problem}")).hint(hint)
}

/// Reads some documents by chance.
async fn sample(local: &Mongo, ns: &Namespace, size: u32) -> Result<Sample, MongoError> {
    let mut sample = Sample::default();
    if size == 0 {
        return Ok(sample);
    }
    let command: RawDocumentBuf = rawdoc! {
        "aggregate": ns.coll(),
        "pipeline": [{ "$sample": { "size": i64::from(size) } }],
        "cursor": {},
    };
    let mut cursor = local.cursor(ns.db(), command).await?;
    while let Some(batch) = cursor.next().await? {
        for document in documents(&batch)? {
            sample.add(document);
        }
    }
    Ok(sample)
}
