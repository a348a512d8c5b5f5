//! What the rows that are there make of a document, whatever was written before.

use std::collections::{HashMap, HashSet};

use tokio_postgres::types::{ToSql, Type};

use super::{Inner, away, route::Routed};
use crate::{
    model::{document_key::DocumentKey, namespace::Namespace, write_op::WriteOp},
    policy::coalesce::coalesce,
    source::SourceError,
};

/// What the rows that are there make of these documents, one after the other.
pub(super) async fn folded(
    inner: &Inner,
    ns: &Namespace,
    keys: &[&DocumentKey],
) -> Result<Vec<Option<WriteOp>>, SourceError> {
    let shape = inner.shape().await?;
    let mut folded = vec![None; keys.len()];
    let Some((sql, params)) = shape.of_documents(&inner.routes, ns, keys) else {
        return Ok(folded);
    };
    let places: HashMap<Vec<u8>, usize> =
        keys.iter().enumerate().map(|(at, key)| (key.canonical(), at)).collect();
    let params: Vec<_> =
        params.iter().map(|texts| (texts as &(dyn ToSql + Sync), Type::TEXT_ARRAY)).collect();
    let mut session = inner.db.session().await.map_err(away)?;
    let rows = session.query(&sql, &params).await.map_err(away)?;
    for row in &rows {
        let Ok(Routed { ns: of, key, op }) = inner.routes.route(&shape.row(row)) else {
            continue;
        };
        let Some(&at) = places.get(&key.canonical()).filter(|_| of == *ns) else { continue };
        folded[at] = Some(match folded[at].take() {
            Some(before) => coalesce(before, op),
            None => op,
        });
    }
    Ok(folded)
}

/// Has rows come again that made no sense before, each with all that is newer of its entity. What is asked for and is
/// not there any more is `None`.
pub(super) async fn read_again(
    inner: &Inner,
    keys: &[&DocumentKey],
) -> Result<Vec<Option<WriteOp>>, SourceError> {
    let shape = inner.shape().await?;
    let id_of = |key: &DocumentKey| Some(key.value().ok()?.as_str()?.to_owned());
    let ids: Vec<String> = keys.iter().filter_map(|key| id_of(key)).collect();
    let mut session = inner.db.session().await.map_err(away)?;
    let rows = session.query(&shape.again(), &[(&ids, Type::TEXT_ARRAY)]).await.map_err(away)?;
    let come: HashSet<String> = rows.iter().filter_map(|row| row.try_get(0).ok()).collect();
    let comes = |key: &&DocumentKey| id_of(key).is_some_and(|id| come.contains(&id));
    Ok(keys.iter().map(|key| comes(key).then_some(WriteOp::Refresh)).collect())
}
