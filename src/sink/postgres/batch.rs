//! One batch of one collection in one transaction.
//!
//! ```text
//! BEGIN, fence │ rows, children, deletes, what is said of them, COMMIT
//!     one round trip   │   one more, unless a row is refused
//! ```
//!
//! A statement that the server refuses takes its transaction with it, and says of a thousand rows only that one is
//! wrong. So the batch is then tried again in halves, each behind a savepoint, down to the row; all others are in the
//! same transaction, and so is the note of the one that is not.

use std::collections::HashSet;

use futures_util::future::{BoxFuture, FutureExt, join_all};
use tokio_postgres::{Client, types::Type};

use super::{
    cell::Cell,
    class::Class,
    connect::{Failed, Param, Session},
    fence::{self, Fence},
    row::Row,
    statement,
    table::{Child, Table},
    wire::Column,
};

/// What becomes of one document.
#[derive(Debug)]
pub enum RowWrite {
    Row(Row),
    /// By its key, and as people write it.
    Delete(Cell),
}

impl RowWrite {
    pub fn row(&self) -> Option<&Row> {
        match self {
            RowWrite::Row(row) => Some(row),
            RowWrite::Delete(_) => None,
        }
    }

    fn key(&self) -> &Cell {
        match self {
            RowWrite::Row(row) => row.key(),
            RowWrite::Delete(key) => key,
        }
    }
}

/// How one ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Done { created: bool },
    Refused { reason: String, state: String },
}

/// How often a transaction is run again that another one was in the way of.
const CONFLICTS_MAX: u32 = 5;

/// Writes all of it or nothing, refused rows apart. Each item is of another document.
///
/// # Errors
/// Where the server could not be asked, or this agent's lease is not the one that counts.
pub async fn write(
    session: &mut Session,
    fence: Option<&Fence>,
    table: &Table,
    items: &[RowWrite],
) -> Result<Vec<Outcome>, Failed> {
    let mut conflicts = 0;
    loop {
        let result = match attempt(session, fence, table, items).await {
            Err(failed) if failed.class == Class::Rejected && !is_of_the_table(&failed) => {
                bisected(session, fence, table, items).await
            }
            result => result,
        };
        match result {
            Err(failed) if failed.class == Class::Conflict && conflicts < CONFLICTS_MAX => {
                conflicts += 1;
            }
            result => return result,
        }
    }
}

/// undefined_table, invalid_schema_name, undefined_column: the table is to be made first, and no row is to blame.
pub fn is_of_the_table(failed: &Failed) -> bool {
    failed.is(&["42P01", "3F000", "42703"])
}

/// The usual case: everything is sent at once, and answered at once.
async fn attempt(
    session: &mut Session,
    fence: Option<&Fence>,
    table: &Table,
    items: &[RowWrite],
) -> Result<Vec<Outcome>, Failed> {
    let begun = fence::begin(session, fence).await?;
    let statements = Statements::of(table, items);
    let sent = session
        .within(async |client| answers(statements.futures(client).chain([commit(client)])).await)
        .await;
    match sent {
        Ok(answers) => {
            begun.committed();
            Ok(statements.outcomes(items, &answers))
        }
        Err(failed) => {
            begun.roll_back(session).await;
            Err(failed)
        }
    }
}

/// As one of the statements that are sent at once.
pub(super) fn commit(
    client: &Client,
) -> BoxFuture<'_, Result<Vec<tokio_postgres::Row>, tokio_postgres::Error>> {
    async { client.batch_execute("COMMIT").await.map(|()| Vec::new()) }.boxed()
}

/// The answers to statements that are sent at once, in their order; or the first of them that is an error. Those behind it
/// are told that the transaction is aborted, which may be seen first, and says nothing of why.
pub(super) async fn answers<T, E>(
    sent: impl Iterator<Item = BoxFuture<'_, Result<T, E>>>,
) -> Result<Vec<T>, E> {
    join_all(sent).await.into_iter().collect()
}

/// In halves.
async fn bisected(
    session: &mut Session,
    fence: Option<&Fence>,
    table: &Table,
    items: &[RowWrite],
) -> Result<Vec<Outcome>, Failed> {
    let begun = fence::begin(session, fence).await?;
    let done = async {
        // Else a rule that is looked at when the transaction ends would refuse all of it, and name no row.
        session.batch("SET CONSTRAINTS ALL IMMEDIATE").await?;
        let outcomes = halves(session, table, items).await?;
        note_refused(session, table, items, &outcomes).await?;
        session.batch("COMMIT").await?;
        Ok(outcomes)
    }
    .await;
    // Wherever it failed: what is left open would be met by whoever has the connection next.
    match &done {
        Ok(_) => begun.committed(),
        Err(_) => begun.roll_back(session).await,
    }
    done
}

fn halves<'a>(
    session: &'a mut Session,
    table: &'a Table,
    items: &'a [RowWrite],
) -> BoxFuture<'a, Result<Vec<Outcome>, Failed>> {
    async move {
        let statements = Statements::of(table, items);
        session.batch("SAVEPOINT part").await?;
        let sent = session.within(async |client| answers(statements.futures(client)).await).await;
        let failed = match sent {
            Ok(answers) => {
                session.batch("RELEASE SAVEPOINT part").await?;
                return Ok(statements.outcomes(items, &answers));
            }
            Err(failed) if failed.class == Class::Rejected && !is_of_the_table(&failed) => failed,
            Err(failed) => return Err(failed),
        };
        session.batch("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part").await?;
        if items.len() == 1 {
            let state = failed.state.unwrap_or_default();
            return Ok(vec![Outcome::Refused { reason: failed.problem, state }]);
        }
        let (one, other) = items.split_at(items.len() / 2);
        let mut outcomes = halves(session, table, one).await?;
        outcomes.extend(halves(session, table, other).await?);
        Ok(outcomes)
    }
    .boxed()
}

/// Tells SQL readers what is not there.
async fn note_refused(
    session: &mut Session,
    table: &Table,
    items: &[RowWrite],
    outcomes: &[Outcome],
) -> Result<(), Failed> {
    let mut noted = Noted::default();
    for (item, outcome) in items.iter().zip(outcomes) {
        if let (RowWrite::Row(row), Outcome::Refused { reason, .. }) = (item, outcome) {
            noted.push(row, "FAILED", "", reason);
        }
    }
    if noted.is_empty() {
        return Ok(());
    }
    let text = statement::note_failures(table);
    let columns = noted.columns();
    let params = typed(&columns);
    session.query(&text, &params).await.map(drop)
}

/// Rows of `outrigger.failures`, by column.
#[derive(Default)]
struct Noted([Vec<Cell>; 5]);

impl Noted {
    fn push(&mut self, row: &Row, state: &str, path: &str, error: &str) {
        let text = |text: &str| Cell::Text(text.replace('\0', "\u{FFFD}"));
        let values =
            [row.cells[0].clone(), row.cells[1].clone(), text(state), text(path), text(error)];
        for (column, value) in self.0.iter_mut().zip(values) {
            column.push(value);
        }
    }

    fn is_empty(&self) -> bool {
        self.0[0].is_empty()
    }

    fn columns(&self) -> Vec<(Column<'_>, Type)> {
        let columns = self.0.iter().map(|column| Column(column.iter().collect()));
        columns.zip(statement::NOTED).collect()
    }
}

fn typed<'a>(columns: &'a [(Column<'a>, Type)]) -> Vec<Param<'a>> {
    columns.iter().map(|(column, ty)| (column as _, ty.clone())).collect()
}

/// What is sent for some items, in this order.
pub(super) struct Statements<'a> {
    all: Vec<(String, Vec<(Column<'a>, Type)>)>,
    /// The first of them says which rows were not there.
    has_rows: bool,
    noted: Noted,
    note: Option<String>,
}

impl<'a> Statements<'a> {
    fn of(table: &Table, items: &'a [RowWrite]) -> Self {
        let (mut rows, mut gone) = (Vec::new(), Vec::new());
        for item in items {
            match item {
                RowWrite::Row(row) => rows.push(row),
                RowWrite::Delete(key) => gone.push(key),
            }
        }
        let mut all = Vec::new();
        if !rows.is_empty() {
            let cells: Vec<_> = rows.iter().map(|row| row.cells.as_slice()).collect();
            let types = table.types().map(|(_, ty)| ty);
            all.push((statement::upsert(table), statement::columns(types, &cells)));
        }
        if !gone.is_empty() {
            let keys = (Column(gone), Type::BYTEA_ARRAY);
            all.push((statement::delete(&table.quoted()), vec![keys]));
        }
        for (at, child) in table.children.iter().enumerate() {
            all.push((statement::delete_children(child), vec![keys_of(items)]));
            let elements = statement::child_rows(&rows, at);
            if !elements.is_empty() {
                all.push((statement::insert_child(child), of_child(child, &elements)));
            }
        }
        let said = Self::said(table, items);
        Self { all: all.into_iter().chain(said.all).collect(), has_rows: !rows.is_empty(), ..said }
    }

    /// What is said of items that are written in another way.
    pub(super) fn said(table: &Table, items: &'a [RowWrite]) -> Self {
        let all = vec![(statement::forget_failures(table), vec![keys_of(items)])];
        let mut noted = Noted::default();
        for item in items {
            let RowWrite::Row(row) = item else { continue };
            // One line for a path: a statement does not change a row twice.
            let mut paths = HashSet::new();
            for loss in row.losses.iter().filter(|loss| paths.insert(&*loss.path)) {
                noted.push(row, "INEXACT", &loss.path, loss.what);
            }
        }
        let note = (!noted.is_empty()).then(|| statement::note_failures(table));
        Self { all, has_rows: false, noted, note }
    }

    /// Each is sent when it is first asked, so that they go out in this order, without a wait in between.
    pub(super) fn futures<'s>(
        &'s self,
        client: &'s Client,
    ) -> impl Iterator<Item = BoxFuture<'s, Result<Vec<tokio_postgres::Row>, tokio_postgres::Error>>>
    {
        let note = self.note.iter().map(move |text| {
            async move {
                let columns = self.noted.columns();
                client.query_typed(text, &typed(&columns)).await
            }
            .boxed()
        });
        let all = self.all.iter().map(move |(text, columns)| {
            async move { client.query_typed(text, &typed(columns)).await }.boxed()
        });
        all.chain(note)
    }

    fn outcomes(&self, items: &[RowWrite], answers: &[Vec<tokio_postgres::Row>]) -> Vec<Outcome> {
        let first = answers.first().filter(|_| self.has_rows);
        let mut created = first.into_iter().flatten().map(|row| row.try_get(0).unwrap_or_default());
        items
            .iter()
            .map(|item| Outcome::Done {
                created: match item {
                    RowWrite::Row(_) => created.next().unwrap_or_default(),
                    RowWrite::Delete(_) => false,
                },
            })
            .collect()
    }
}

fn keys_of(items: &[RowWrite]) -> (Column<'_>, Type) {
    (Column(items.iter().map(RowWrite::key).collect()), Type::BYTEA_ARRAY)
}

fn of_child<'a>(child: &Child, elements: &[&'a [Cell]]) -> Vec<(Column<'a>, Type)> {
    statement::columns(child.types().map(|(_, ty)| ty), elements)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_statement_that_is_refused_is_told_of_whichever_answer_is_seen_first() {
        let row = async {
            tokio::task::yield_now().await;
            Err::<(), _>("a value that is no number")
        };
        let commit = async { Err("the transaction is aborted") };

        let answered = answers([row.boxed(), commit.boxed()].into_iter()).await;

        assert_eq!(answered, Err("a value that is no number"));
    }
}
