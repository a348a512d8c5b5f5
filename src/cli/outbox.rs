//! `outrigger outbox init`: the table that events are written into, and what an application adds to its transactions.

use std::process::ExitCode as Code;

use super::{args::OutboxInitArgs, show};
use crate::{
    config::{Config, ConfigError, SourceKind},
    observe::report::Failure,
    source::outbox::table::{self, Dialect, literal, quoted_table},
};

/// Exit code 0: everything was printed.
///
/// # Errors
/// Where the source is another.
pub fn init(config: &Config, args: &OutboxInitArgs) -> Result<Code, Failure> {
    if config.source.kind != SourceKind::Outbox {
        let problem =
            "is `mongodb`, which has no outbox; set `kind = \"outbox\"` and a `[[route]]`";
        return Err(ConfigError::invalid("source.kind", problem.to_owned()).into());
    }
    let dialect = if args.cockroachdb { Dialect::CockroachDb } else { Dialect::PostgreSql };
    show::line(
        "-- The table, what it is read by, and the reader's lease. What is there already stays.",
    );
    table::ddl(&config.outbox, &config.routes, dialect).iter().for_each(print);
    if let Some(user) = &args.user {
        show::line("\n-- What the reader may do.");
        table::grants(&config.outbox, &config.routes, user).iter().for_each(print);
    }
    for rule in &config.routes.tables {
        let name = quoted_table(&rule.name);
        show::line(format!("\n-- {name} is read for the first copy, `sync` and `verify`."));
    }
    if dialect == Dialect::PostgreSql {
        show::line(
            "\n-- Has PostgreSQL tell of new rows, which are found within moments then. Without it they are found\n\
             -- within `outbox.poll`. A transaction that tells of something waits at its commit for others that do.",
        );
        table::notify(&config.outbox).iter().for_each(print);
    }
    show::line("");
    application(config).lines().for_each(|line| show::line(format!("-- {line}").trim_end()));
    Ok(Code::SUCCESS)
}

fn print(statement: &String) {
    show::line(format!("{statement};"));
}

/// What an application adds to its transactions, in three languages.
fn application(config: &Config) -> String {
    let (outbox, columns) = (&config.outbox, &config.outbox.columns);
    let name = |role: &str| columns.get(role).unwrap_or(role).to_owned();
    let (event, entity, payload) = (name("event_type"), name("entity_id"), name("payload"));
    let route = config.routes.routes.first();
    let example = route.map_or("todo.updated".to_owned(), |route| {
        route.event.replace('*', "updated").replace('?', "x")
    });
    let (table, bare) = (quoted_table(&outbox.table), outbox.table.replace('.', "_"));
    let sql_event = literal(&example);
    format!(
        "What an application adds to the transaction that changes an entity, after the change: its lock on the entity\n\
         is what keeps two of its changes in order.\n\
         \n\
         SQL:\n\
         \x20 BEGIN;\n\
         \x20 UPDATE todos SET title = $2 WHERE id = $1;\n\
         \x20 INSERT INTO {table} ({event}, {entity}, {payload})\n\
         \x20   SELECT {sql_event}, id::text, to_jsonb(todos) FROM todos WHERE id = $1;\n\
         \x20 COMMIT;\n\
         \n\
         Prisma:\n\
         \x20 await prisma.$transaction(async (tx) => {{\n\
         \x20   const todo = await tx.todo.update({{ where: {{ id }}, data: {{ title }} }});\n\
         \x20   await tx.{bare}.create({{ data: {{ {event}: '{example}', {entity}: String(id), {payload}: todo }} }});\n\
         \x20 }});\n\
         \n\
         SQLAlchemy:\n\
         \x20 with Session(engine) as session, session.begin():\n\
         \x20     todo = session.get(Todo, id, with_for_update=True)\n\
         \x20     todo.title = title\n\
         \x20     session.flush()\n\
         \x20     session.execute(insert({bare}).values({event}='{example}', {entity}=str(id), {payload}=todo.as_dict()))\n"
    )
}
