//! The tables beside the outbox, as those see them who compare: each by the collection that its rows are documents of.

use bson::RawDocumentBuf;

use super::{
    OutboxSource, not_read,
    tables::{Stretch, Tables, Walked},
};
use crate::{
    model::{checkpoint::ClusterTime, document_key::DocumentKey, namespace::Namespace},
    source::{Page, Pages, SourceError},
};

/// Rows of the first page of those that are found by their keys, and bytes below which the next page may have more.
const FIRST: usize = 100;
const PAGE_BYTES: usize = 4 << 20;

/// Documents of these keys.
pub enum OutboxPages {
    /// As far as the rows of the outbox say them whole.
    Read(Option<Page>),
    /// Those that are still to be found in a table: so many in the next page. How large they are is known of the last one.
    Found { source: OutboxSource, ns: Namespace, keys: Vec<DocumentKey>, limit: usize },
}

impl OutboxPages {
    pub(super) fn found(source: &OutboxSource, ns: &Namespace, keys: &[&DocumentKey]) -> Self {
        let keys = keys.iter().copied().cloned().collect();
        Self::Found { source: source.clone(), ns: ns.clone(), keys, limit: FIRST }
    }
}

impl Pages for OutboxPages {
    async fn next(&mut self) -> Result<Option<Page>, SourceError> {
        let (source, ns, keys, limit) = match self {
            Self::Read(page) => return Ok(page.take()),
            Self::Found { keys, .. } if keys.is_empty() => return Ok(None),
            Self::Found { source, ns, keys, limit } => (source, ns, keys, limit),
        };
        let read_at = ClusterTime(source.0.number());
        let now: Vec<_> = keys.drain(..(*limit).min(keys.len())).collect();
        let documents = source.find(ns, now.iter()).await?;
        let bytes: usize = documents.iter().map(|document| document.as_bytes().len()).sum();
        *limit = if bytes < PAGE_BYTES { now.len() * 4 } else { (now.len() / 2).max(1) };
        Ok(Some(Page { documents, read_at }))
    }
}

impl OutboxSource {
    /// The tables whose rows are documents.
    pub fn tables(&self) -> &Tables {
        &self.0.tables
    }

    /// The documents of a stretch of a table; none of a collection that has none.
    ///
    /// # Errors
    /// When the database cannot be asked, or a row is none.
    pub async fn walk(&self, ns: &Namespace, stretch: Stretch<'_>) -> Result<Walked, SourceError> {
        let none = Walked { documents: Vec::new(), is_end: true };
        let Some(rule) = self.0.tables.of(ns) else { return Ok(none) };
        self.0.tables.walk(&self.0.db, rule, stretch).await.map_err(not_read)
    }

    /// As [`walk`](Self::walk), by key.
    ///
    /// # Errors
    /// As of [`walk`](Self::walk).
    pub async fn find(
        &self,
        ns: &Namespace,
        keys: impl Iterator<Item = &DocumentKey> + Send,
    ) -> Result<Vec<RawDocumentBuf>, SourceError> {
        let Some(rule) = self.0.tables.of(ns) else { return Ok(Vec::new()) };
        self.0.tables.find(&self.0.db, rule, keys).await.map_err(not_read)
    }

    /// Keys of a table by chance, in order.
    ///
    /// # Errors
    /// As of [`walk`](Self::walk).
    pub async fn sample(&self, ns: &Namespace, keys: u64) -> Result<Vec<DocumentKey>, SourceError> {
        let Some(rule) = self.0.tables.of(ns) else { return Ok(Vec::new()) };
        self.0.tables.sample(&self.0.db, rule, keys).await.map_err(not_read)
    }

    /// How many rows a table has.
    ///
    /// # Errors
    /// As of [`walk`](Self::walk).
    pub async fn count(&self, ns: &Namespace) -> Result<u64, SourceError> {
        let Some(rule) = self.0.tables.of(ns) else { return Ok(0) };
        self.0.tables.count(&self.0.db, rule).await.map_err(not_read)
    }

    /// How many rows a table has, and about how many bytes each.
    ///
    /// # Errors
    /// As of [`walk`](Self::walk).
    pub async fn measure(&self, ns: &Namespace) -> Result<(u64, u64), SourceError> {
        let Some(rule) = self.0.tables.of(ns) else { return Ok((0, 0)) };
        self.0.tables.measure(&self.0.db, rule).await.map_err(not_read)
    }

    /// Whether a table has no rows.
    ///
    /// # Errors
    /// As of [`walk`](Self::walk).
    pub async fn is_empty(&self, ns: &Namespace) -> Result<bool, SourceError> {
        let Some(rule) = self.0.tables.of(ns) else { return Ok(true) };
        self.0.tables.is_empty(&self.0.db, rule).await.map_err(not_read)
    }
}
