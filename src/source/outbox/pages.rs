//! Documents that are read by their keys, page by page.

use super::{OutboxSource, tables::PAGE_BYTES};
use crate::{
    model::{checkpoint::ClusterTime, document_key::DocumentKey, namespace::Namespace},
    source::{Page, Pages, SourceError},
};

/// Rows of the first page of those that are found by their keys. Where they are small, the next page has more.
const FIRST: usize = 100;

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
