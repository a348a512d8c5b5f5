//! The rows as a stream of changes.
//!
//! A position is a number that the reader counts up with each row, and its token has beside it which rows those of the
//! batch are. So a row is marked when the queue has it on its disk, by the agent that has read it or by the next one: what
//! was committed and not marked is marked first when the stream is opened again, and not read twice.
//!
//! A queue that is not the one that the lease names does not have what was marked before. It begins by having every
//! document [renewed](super::OutboxSource) of which a row is still there, then reads what waits.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bson::{RawDocumentBuf, rawdoc};
use tokio_postgres::types::Type;

use super::{
    Inner, away,
    lease::Held,
    route::{OutboxRow, Routed},
    shape::Shape,
};
use crate::{
    model::{
        checkpoint::{ClusterTime, ResumeToken},
        document_key::DocumentKey,
        event::{Change, ChangeEvent, CollectionId},
        write_op::WriteOp,
    },
    postgres::listen::Listener,
    runtime::{
        clock::now_ms,
        crash::{self, CrashPoint},
    },
    source::{Cause, EventBatch, EventStream, SourceError},
};

/// Bytes of a batch at the most, as the database keeps them; one row may be larger.
const BATCH_BYTES: usize = 8 << 20;

/// The collection that every name of it has: it keeps no other.
pub const COLLECTION: CollectionId = CollectionId(*b"outrigger-outbox");

/// What a token says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Position {
    pub reader: String,
    pub number: u64,
    /// Rows of the batch that ends here, and what is wrong with those that make no sense.
    pub rows: Vec<String>,
    pub refused: Vec<(String, String)>,
    /// While documents are renewed: the row behind which that goes on; empty at the beginning.
    pub renewing: Option<Vec<String>>,
}

impl Position {
    pub fn token(&self) -> ResumeToken {
        let array = |items: &mut dyn Iterator<Item = &str>| {
            let mut array = bson::RawArrayBuf::new();
            items.for_each(|item| array.push(item));
            array
        };
        let mut token = rawdoc! {
            "reader": self.reader.as_str(),
            "number": i64::try_from(self.number).unwrap_or(i64::MAX),
            "rows": array(&mut self.rows.iter().map(String::as_str)),
            "refused": array(&mut self.refused.iter().map(|(id, _)| id.as_str())),
            "reasons": array(&mut self.refused.iter().map(|(_, reason)| reason.as_str())),
        };
        if let Some(behind) = &self.renewing {
            token.append(
                bson::raw::cstr!("renewing"),
                array(&mut behind.iter().map(String::as_str)),
            );
        }
        ResumeToken(token)
    }

    /// `None` for a token of another source.
    pub fn of(token: &ResumeToken) -> Option<Self> {
        let texts = |name: &str| -> Option<Vec<String>> {
            let array = token.0.get_array(name).ok()?;
            array.into_iter().map(|item| item.ok()?.as_str().map(str::to_owned)).collect()
        };
        Some(Self {
            reader: token.0.get_str("reader").ok()?.to_owned(),
            number: u64::try_from(token.0.get_i64("number").ok()?).ok()?,
            rows: texts("rows")?,
            refused: texts("refused")?.into_iter().zip(texts("reasons")?).collect(),
            renewing: texts("renewing"),
        })
    }
}

/// The rows of an outbox, as a stream of changes.
pub struct OutboxStream {
    pub(super) source: Arc<Inner>,
    pub(super) shape: Arc<Shape>,
    pub(super) lease: Arc<Held>,
    pub(super) position: Position,
    /// Handed out and not confirmed.
    pub(super) open: Vec<Position>,
    pub(super) listener: Option<Listener>,
    /// The first batch is handed out at once, though it is empty.
    pub(super) is_first: bool,
}

impl OutboxStream {
    fn check(&self) -> Result<(), SourceError> {
        if self.lease.is_lost() { Err(fenced()) } else { Ok(()) }
    }

    async fn read(&mut self) -> Result<Option<Vec<ChangeEvent>>, SourceError> {
        let limit = (self.source.config.batch_size, BATCH_BYTES);
        let rows = if let Some(behind) = self.position.renewing.clone() {
            let sql = self.shape.processed(!behind.is_empty(), limit);
            let params: Vec<_> = behind
                .iter()
                .map(|text| (text as &(dyn tokio_postgres::types::ToSql + Sync), Type::TEXT))
                .collect();
            self.rows(&sql, &params).await?
        } else {
            let open: Vec<&String> = self
                .open
                .iter()
                .flat_map(|position| {
                    position.rows.iter().chain(position.refused.iter().map(|(id, _)| id))
                })
                .collect();
            let sql = self.shape.unprocessed(limit);
            self.rows(&sql, &[(&open, Type::TEXT_ARRAY)]).await?
        };
        if self.position.renewing.is_some() {
            self.position.renewing = rows.last().map(|row| row.order.clone());
            return Ok(Some(self.renewals(rows)));
        }
        Ok((!rows.is_empty()).then(|| self.changes(rows)))
    }

    async fn rows(
        &self,
        sql: &str,
        params: &[crate::postgres::connect::Param<'_>],
    ) -> Result<Vec<OutboxRow>, SourceError> {
        let mut session = self.source.db.session().await.map_err(away)?;
        let rows = session.query(sql, params).await.map_err(away)?;
        Ok(rows.iter().map(|row| self.shape.row(row)).collect())
    }

    fn event(&mut self, wall_ms: u64, change: Change) -> ChangeEvent {
        self.position.number += 1;
        let cluster_time = ClusterTime(self.position.number);
        let wall_ms = if wall_ms == 0 { now_ms() } else { wall_ms };
        ChangeEvent { cluster_time, wall_ms, collection: Some(COLLECTION), change }
    }

    fn changes(&mut self, rows: Vec<OutboxRow>) -> Vec<ChangeEvent> {
        let mut events = Vec::with_capacity(rows.len());
        for row in rows {
            let change = match self.source.routes.route(&row) {
                Ok(Routed { ns, key, op }) => {
                    self.position.rows.push(row.id);
                    // Newer ones may have been written already: the document is what all of its rows make of it.
                    let op = if row.comes_again { WriteOp::Refresh } else { op };
                    Change::Document { ns, key, op }
                }
                Err(reason) => {
                    let (ns, key) = (self.source.own.clone(), key_of_row(&row.id));
                    let told = format!("row {}: {reason}", row.id);
                    self.position.refused.push((row.id, reason));
                    Change::Refused { ns, key, reason: told }
                }
            };
            events.push(self.event(row.wall_ms, change));
        }
        events
    }

    /// The documents of these rows, each once. Every row counts all the same: by their number it is known when all have
    /// been read.
    fn renewals(&mut self, rows: Vec<OutboxRow>) -> Vec<ChangeEvent> {
        let (mut met, end) = (HashSet::new(), self.position.number + rows.len() as u64);
        let mut events = Vec::new();
        for row in rows {
            let Ok(Routed { ns, key, .. }) = self.source.routes.route(&row) else { continue };
            if met.insert((ns.clone(), key.canonical())) {
                events.push(
                    self.event(row.wall_ms, Change::Document { ns, key, op: WriteOp::Refresh }),
                );
            }
        }
        self.position.number = end;
        events
    }

    fn batch(&mut self, events: Vec<ChangeEvent>) -> EventBatch {
        self.source.reached(&mut self.position);
        let cluster_time = ClusterTime(self.position.number);
        let token = self.position.token();
        if !self.position.rows.is_empty() || !self.position.refused.is_empty() {
            self.open.push(self.position.clone());
            self.position.rows.clear();
            self.position.refused.clear();
        }
        EventBatch { events, token, cluster_time, whole: cluster_time }
    }

    async fn wait(&mut self, at_most: Duration) {
        match &self.listener {
            Some(listener) => {
                let _ = tokio::time::timeout(at_most, listener.heard()).await;
            }
            None => tokio::time::sleep(at_most).await,
        }
    }
}

impl EventStream for OutboxStream {
    async fn next(&mut self) -> Result<EventBatch, SourceError> {
        self.check()?;
        let mut events = self.read().await?;
        if events.is_none() && !std::mem::replace(&mut self.is_first, false) {
            self.wait(self.source.config.poll).await;
            self.check()?;
            events = self.read().await?;
        }
        let batch = self.batch(events.unwrap_or_default());
        if self.open.is_empty() {
            *self.source.marked.lock().await = self.position.number;
        }
        Ok(batch)
    }

    fn keeps_unconfirmed(&self) -> bool {
        true
    }

    async fn confirm(&mut self, position: &ResumeToken) -> Result<(), SourceError> {
        self.check()?;
        let Some(confirmed) = Position::of(position) else { return Ok(()) };
        while let Some(open) = self.open.first().filter(|open| open.number <= confirmed.number) {
            let number = i64::try_from(open.number).unwrap_or(i64::MAX);
            let ids: Vec<&str> = open.refused.iter().map(|(id, _)| id.as_str()).collect();
            let reasons: Vec<&str> =
                open.refused.iter().map(|(_, reason)| reason.as_str()).collect();
            // Nobody counts what waits between the statement and the note of it.
            let mut marked = self.source.marked.lock().await;
            let mut session = self.source.db.session().await.map_err(away)?;
            let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 5] = [
                (&open.rows, Type::TEXT_ARRAY),
                (&ids, Type::TEXT_ARRAY),
                (&reasons, Type::TEXT_ARRAY),
                (&number, Type::INT8),
                (&self.lease.term, Type::INT8),
            ];
            let rows = session.query(&self.shape.mark(), &params).await.map_err(away)?;
            let is_held = rows.first().is_some_and(|row| row.get::<_, i64>(0) == 1);
            if !is_held {
                return Err(fenced());
            }
            crash::point(CrashPoint::RowsMarked);
            *marked = self.open.remove(0).number;
        }
        Ok(())
    }
}

pub(super) fn fenced() -> SourceError {
    SourceError::Unavailable(Cause::Other("another agent reads the outbox".to_owned()))
}

/// By what a row is named among the dead letters.
pub fn key_of_row(id: &str) -> DocumentKey {
    let document: RawDocumentBuf = rawdoc! { "_id": id };
    DocumentKey::of(&document).expect("it has an `_id`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_which_rows_are_behind_it() {
        let texts =
            |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        let position = Position {
            reader: "a".to_owned(),
            number: 7,
            rows: texts(&["5", "6"]),
            refused: vec![("7".to_owned(), "no route".to_owned())],
            renewing: Some(texts(&[])),
        };

        assert_eq!(Position::of(&position.token()), Some(position.clone()));
        let position = Position { renewing: None, ..position };
        assert_eq!(Position::of(&position.token()), Some(position));
        assert_eq!(Position::of(&ResumeToken(rawdoc! { "_data": "82" })), None);
    }
}
