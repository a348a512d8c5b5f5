//! What becomes of a row: its route, by the type of its event, and by that its collection, its key and its op. Pure.

use bson::{Bson, RawDocumentBuf};

use super::json;
use crate::{
    config::{KeyPlace, RouteOp, RouteRule},
    model::{document_key::DocumentKey, namespace::Namespace, write_op::WriteOp},
};

/// One row of the table, as far as it is needed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OutboxRow {
    /// As text, which is how it is named to the database again.
    pub id: String,
    /// What the rows are read in order by, as text.
    pub order: Vec<String>,
    pub event: String,
    pub payload: Option<String>,
    /// It was handed out before, and made no sense then: what is newer may have been written since.
    pub comes_again: bool,
    /// When it was written, milliseconds since 1970.
    pub wall_ms: u64,
    /// The columns that keys are in: name, value, and whether it is a whole number.
    pub keys: Vec<(String, Option<String>, bool)>,
}

/// What a row asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Routed {
    pub ns: Namespace,
    pub key: DocumentKey,
    pub op: WriteOp,
}

/// Which event types go where.
#[derive(Clone, Debug)]
pub struct Routes {
    /// The most specific first.
    routes: Vec<RouteRule>,
}

impl Routes {
    pub fn new(mut routes: Vec<RouteRule>) -> Self {
        // Stable: of two that are equally specific the first one that stands in the file.
        routes.sort_by_key(|route| std::cmp::Reverse(specificity(&route.event)));
        Self { routes }
    }

    /// That of an event of this type.
    pub fn of(&self, event: &str) -> Option<&RouteRule> {
        self.routes.iter().find(|route| matches(&route.event, event))
    }

    /// Those that lead to a collection.
    pub fn to<'a>(&'a self, ns: &'a Namespace) -> impl Iterator<Item = &'a RouteRule> {
        self.routes.iter().filter(move |route| route.collection == *ns)
    }

    /// The columns that keys are in, each once.
    pub fn key_columns(&self) -> Vec<String> {
        let columns = self.routes.iter().filter_map(|route| match &route.key {
            KeyPlace::Column(name) => Some(name.clone()),
            KeyPlace::Payload(_) => None,
        });
        let mut columns: Vec<_> = columns.collect();
        columns.sort();
        columns.dedup();
        columns
    }

    /// What the row asks for.
    ///
    /// # Errors
    /// Why it makes no sense, without a value of it.
    pub fn route(&self, row: &OutboxRow) -> Result<Routed, String> {
        let route = self
            .of(&row.event)
            .ok_or_else(|| format!("no route is for events of the type `{}`", row.event))?;
        let key = key_of(route, row)?;
        let op = match route.op {
            RouteOp::Delete => WriteOp::Delete,
            op => {
                let document = document_of(route, row, &key)?;
                match op {
                    // It may have come before: the table is read again where the queue was lost.
                    RouteOp::Insert | RouteOp::Replace => WriteOp::Replace(document),
                    RouteOp::Merge | RouteOp::Delete => WriteOp::Merge(document),
                }
            }
        };
        Ok(Routed { ns: route.collection.clone(), key, op })
    }
}

fn payload_of(row: &OutboxRow) -> Result<&str, String> {
    row.payload.as_deref().ok_or_else(|| "there is no payload".to_owned())
}

fn key_of(route: &RouteRule, row: &OutboxRow) -> Result<DocumentKey, String> {
    let id = match &route.key {
        KeyPlace::Column(name) => {
            let column = row.keys.iter().find(|(of, _, _)| of == name);
            let (_, value, is_whole) = column.ok_or_else(|| format!("there is no `{name}`"))?;
            let value = value.as_ref().ok_or_else(|| format!("`{name}` is null"))?;
            match value.parse::<i64>() {
                Ok(whole) if *is_whole => {
                    i32::try_from(whole).map_or(Bson::Int64(whole), Bson::Int32)
                }
                _ => Bson::String(value.clone()),
            }
        }
        KeyPlace::Payload(path) => {
            let value = json::value(payload_of(row)?, path, &route.values);
            match value.map_err(|error| error.to_string())? {
                None | Some(Bson::Null) => return Err(format!("`payload.{path}` is not there")),
                Some(Bson::Array(_) | Bson::RegularExpression(_) | Bson::Undefined) => {
                    return Err(format!("`payload.{path}` is what no `_id` can be"));
                }
                Some(value) => value,
            }
        }
    };
    let mut document = bson::Document::new();
    document.insert("_id", id);
    RawDocumentBuf::try_from(&document)
        .map_err(|error| error.to_string())
        .and_then(|document| DocumentKey::of(&document).map_err(|error| error.to_string()))
        .and_then(|key| key.checked().map_err(|error| error.to_string()))
}

/// The payload, with the key as its `_id` in front.
fn document_of(
    route: &RouteRule,
    row: &OutboxRow,
    key: &DocumentKey,
) -> Result<RawDocumentBuf, String> {
    let value = json::value(payload_of(row)?, &route.payload, &route.values)
        .map_err(|error| error.to_string())?;
    let Some(Bson::Document(fields)) = value else {
        let place = if route.payload.is_empty() { "the payload" } else { &route.payload };
        return Err(format!("{place} is no object"));
    };
    let id = key.value().map_err(|error| error.to_string())?;
    let mut document = bson::Document::new();
    document.insert("_id", Bson::try_from(id).map_err(|error| error.to_string())?);
    document.extend(fields.into_iter().filter(|(name, _)| name != "_id"));
    RawDocumentBuf::try_from(&document).map_err(|error| error.to_string())
}

/// An event's type without wildcards is more specific than any pattern; of two patterns that which says more of it.
fn specificity(pattern: &str) -> (bool, usize) {
    let said = pattern.chars().filter(|c| !matches!(c, '*' | '?')).count();
    (!pattern.contains(['*', '?']), said)
}

/// `*` stands for any signs, `?` for one.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;
    use crate::config::ValueRules;

    fn rule(event: &str, key: KeyPlace, op: RouteOp) -> RouteRule {
        RouteRule {
            event: event.to_owned(),
            collection: "app.todos".parse().unwrap(),
            key,
            op,
            payload: String::new(),
            values: ValueRules::default(),
            indexes: Vec::new(),
        }
    }

    fn by_entity(event: &str, op: RouteOp) -> RouteRule {
        rule(event, KeyPlace::Column("entity_id".to_owned()), op)
    }

    fn row(event: &str, payload: &str) -> OutboxRow {
        OutboxRow {
            event: event.to_owned(),
            payload: Some(payload.to_owned()),
            keys: vec![("entity_id".to_owned(), Some("7".to_owned()), false)],
            ..OutboxRow::default()
        }
    }

    #[test]
    fn the_most_specific_pattern_wins_wherever_it_stands() {
        let patterns = ["*", "todo.*", "todo.deleted", "todo.?", "*.deleted"];
        let routes = Routes::new(patterns.map(|event| by_entity(event, RouteOp::Replace)).into());
        let of = |event| routes.of(event).unwrap().event.as_str();

        assert_eq!(of("todo.deleted"), "todo.deleted");
        assert_eq!(of("todo.created"), "todo.*");
        assert_eq!(of("list.deleted"), "*.deleted");
        assert_eq!(of("list.made"), "*");
        assert_eq!(of("todo.x"), "todo.*");
        let few = Routes::new(vec![by_entity("todo.*", RouteOp::Replace)]);
        assert!(few.of("list.made").is_none());
    }

    #[test]
    fn a_row_becomes_an_op_on_the_document_of_its_key() {
        let routes = Routes::new(vec![
            by_entity("todo.*", RouteOp::Replace),
            by_entity("todo.renamed", RouteOp::Merge),
            by_entity("todo.deleted", RouteOp::Delete),
            rule("list.*", KeyPlace::Payload("list.id".to_owned()), RouteOp::Insert),
        ]);
        let document = rawdoc! { "_id": "7", "title": "a" };

        let made = routes.route(&row("todo.made", r#"{"_id": 9, "title": "a"}"#)).unwrap();
        assert_eq!(made.op, WriteOp::Replace(document.clone()));
        assert_eq!(made.key, DocumentKey::of(&rawdoc! { "_id": "7" }).unwrap());
        let renamed = routes.route(&row("todo.renamed", r#"{"title": "a"}"#)).unwrap();
        assert_eq!(renamed.op, WriteOp::Merge(document));
        let gone = routes.route(&OutboxRow { payload: None, ..row("todo.deleted", "") }).unwrap();
        assert_eq!(gone.op, WriteOp::Delete);
        let list = routes.route(&row("list.made", r#"{"list": {"id": 5}}"#)).unwrap();
        assert_eq!(list.key, DocumentKey::of(&rawdoc! { "_id": 5 }).unwrap());
    }

    #[test]
    fn a_row_that_makes_no_sense_says_why_and_nothing_of_what_it_holds() {
        let routes = Routes::new(vec![
            by_entity("todo.*", RouteOp::Replace),
            rule("list.*", KeyPlace::Payload("id".to_owned()), RouteOp::Insert),
        ]);
        let no_key = vec![("entity_id".to_owned(), None, false)];
        for row in [
            row("other", "{}"),
            row("todo.made", "[\"secret\"]"),
            row("todo.made", "\"secret\""),
            row("todo.made", "{\"secret\""),
            OutboxRow { payload: None, ..row("todo.made", "") },
            OutboxRow { keys: no_key, ..row("todo.made", "{}") },
            row("list.made", r#"{"id": ["secret"]}"#),
            row("list.made", r#"{"id": {"$where": "secret"}}"#),
            row("list.made", r#"{"id": null}"#),
        ] {
            let error = routes.route(&row).unwrap_err();
            assert!(!error.contains("secret"), "{row:?}: {error}");
        }
    }
}
