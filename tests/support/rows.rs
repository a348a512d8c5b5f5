//! What a MongoDB holds, as PostgreSQL is to hold it: a model of the mapping that knows nothing of the program's.

use std::{collections::BTreeMap, time::Duration};

use mongodb::{
    Client,
    bson::{Bson, Document, RawDocumentBuf, doc},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    eventually,
    postgres::{Postgres, hex},
};

/// The collections for which something is declared: those of [`workload`](super::workload).
const DECLARED_FOR: [&str; 3] = ["shop.orders", "shop.customers", "crm.people"];

/// What is declared, as the configuration has it. The values change their types all the time.
pub fn declared() -> String {
    let of = |ns: &str| {
        let (_, name) = ns.split_once('.').unwrap();
        format!(
            "[[column]]\ncollection = \"{ns}\"\npath = \"a\"\ntype = \"integer\"\n\
             [[column]]\ncollection = \"{ns}\"\npath = \"b\"\ntype = \"text\"\n\
             [[column]]\ncollection = \"{ns}\"\npath = \"o.a\"\ntype = \"boolean\"\n\
             [[child]]\ncollection = \"{ns}\"\npath = \"arr\"\ntable = \"{name}_arr\"\n\
             columns = [{{ path = \"\", name = \"whole\", type = \"integer\" }}, {{ path = \"a\", type = \"text\" }}]\n"
        )
    };
    DECLARED_FOR.map(of).concat()
}

fn integer(value: Option<&Bson>) -> Value {
    let whole = match value {
        Some(Bson::Int32(v)) => Some(i64::from(*v)),
        Some(Bson::Int64(v)) => Some(*v),
        Some(Bson::Double(v)) if v.trunc() == *v && v.abs() < 1e15 => Some(*v as i64),
        Some(Bson::Decimal128(v)) => decimal(&v.to_string()),
        _ => None,
    };
    json!(whole.and_then(|v| i32::try_from(v).ok()))
}

/// The whole number that a decimal is, whichever way it is written: `-0`, `2.00`, `1E+3`.
fn decimal(text: &str) -> Option<i64> {
    let (mantissa, exponent) = text.split_once('E').unwrap_or((text, "0"));
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits: i128 = format!("{whole}{part}").parse().ok()?;
    let exponent = exponent.parse::<i64>().ok()? - i64::try_from(part.len()).ok()?;
    if digits == 0 {
        return Some(0);
    }
    let power = 10_i128.checked_pow(exponent.unsigned_abs().try_into().ok()?)?;
    let is_whole = exponent >= 0 || digits % power == 0;
    let n = if exponent >= 0 { digits.checked_mul(power)? } else { digits / power };
    is_whole.then(|| n.try_into().ok()).flatten()
}

fn text(value: Option<&Bson>) -> Value {
    match value {
        Some(Bson::String(text) | Bson::Symbol(text)) if !text.contains('\0') => json!(text),
        Some(Bson::ObjectId(id)) => json!(id.to_hex()),
        Some(Bson::Binary(binary)) if u8::from(binary.subtype) == 4 => {
            let bytes: [u8; 16] = binary.bytes.as_slice().try_into().unwrap();
            json!(uuid::Uuid::from_bytes(bytes).to_string())
        }
        _ => Value::Null,
    }
}

/// As SQL hands it out: the columns, and the array's elements.
fn row(document: &Document) -> Value {
    let within =
        |value: Option<&Bson>| value.and_then(Bson::as_document).and_then(|o| o.get("a")).cloned();
    let o_a = within(document.get("o"));
    let elements: Vec<_> = match document.get("arr") {
        Some(Bson::Array(elements)) => elements
            .iter()
            .map(|element| json!([integer(Some(element)), text(within(Some(element)).as_ref())]))
            .collect(),
        _ => Vec::new(),
    };
    let boolean = o_a.as_ref().and_then(Bson::as_bool);
    json!([integer(document.get("a")), text(document.get("b")), boolean, elements])
}

/// Of each collection its documents in the order of their `_id`s: the hash of each, and what is declared of it.
pub type Tables = BTreeMap<String, Vec<(String, Value)>>;

/// What PostgreSQL is to hold.
pub async fn model(local: &Client) -> mongodb::error::Result<Tables> {
    let mut tables = Tables::new();
    for db in local.list_database_names().await? {
        if matches!(&*db, "admin" | "config" | "local") {
            continue;
        }
        let db = local.database(&db);
        let mut listed = db.list_collections().await?;
        while listed.advance().await? {
            let of = listed.deserialize_current()?;
            let is_the_servers = of.name.starts_with("system.");
            if is_the_servers || of.collection_type != mongodb::results::CollectionType::Collection
            {
                continue;
            }
            let ns = format!("{}.{}", db.name(), of.name);
            let collection = db.collection::<RawDocumentBuf>(&of.name);
            let mut found = collection.find(doc! {}).sort(doc! { "_id": 1 }).await?;
            let mut rows = Vec::new();
            while found.advance().await? {
                let raw = found.current();
                let hash = Sha256::digest(raw.as_bytes());
                let hash = hex(&hash);
                let is_declared = DECLARED_FOR.contains(&&*ns);
                let document = Document::try_from(raw).unwrap_or_default();
                rows.push((hash, if is_declared { row(&document) } else { Value::Null }));
            }
            tables.insert(ns, rows);
        }
    }
    Ok(tables)
}

/// What it holds.
///
/// # Errors
/// What the server says where a table goes away meanwhile.
pub async fn held(target: &Postgres) -> Result<Tables, tokio_postgres::Error> {
    let mut tables = Tables::new();
    if target.try_ask("SELECT to_regclass('outrigger.tables') IS NULL").await? == ["t"] {
        return Ok(tables);
    }
    let listed =
        "SELECT ns || '|' || format('%I.%I', table_schema, table_name) FROM outrigger.tables";
    for line in target.try_ask(listed).await? {
        let (ns, table) = line.split_once('|').unwrap();
        let is_declared = DECLARED_FOR.contains(&ns);
        let declared = if is_declared {
            format!(
                "jsonb_build_array(a, b, o_a, coalesce((SELECT jsonb_agg(jsonb_build_array(whole, c.a) ORDER BY position) \
                 FROM {table}_arr c WHERE c._id = t._id), '[]'))"
            )
        } else {
            "'null'".to_owned()
        };
        let rows = target
            .try_ask(&format!("SELECT encode(hash, 'hex'), {declared} FROM {table} t ORDER BY _id"))
            .await?;
        let rows = rows.iter().map(|row| {
            let (hash, declared) = row.split_once('|').unwrap();
            (hash.to_owned(), serde_json::from_str(declared).unwrap())
        });
        tables.insert(ns.to_owned(), rows.collect());
    }
    Ok(tables)
}

/// What of them differs, in words. A collection that holds nothing need not have its table.
fn differences(model: &Tables, held: &Tables) -> Vec<String> {
    let mut found = Vec::new();
    let names: std::collections::BTreeSet<_> = model.keys().chain(held.keys()).collect();
    for ns in names {
        let none = Vec::new();
        let (wanted, is_there) = match (model.get(ns), held.get(ns)) {
            (None, Some(_)) => {
                found.push(format!("{ns}: there is a table of no collection"));
                continue;
            }
            (wanted, is_there) => (wanted.unwrap_or(&none), is_there.unwrap_or(&none)),
        };
        if wanted.len() != is_there.len() {
            found.push(format!("{ns}: {} rows for {} documents", is_there.len(), wanted.len()));
        } else if let Some((a, b)) = wanted.iter().zip(is_there).find(|(a, b)| a != b) {
            found.push(format!("{ns}: {b:?} for {a:?}"));
        }
    }
    found
}

/// Waits until every document has the row that the model says, and there are no other rows.
///
/// # Panics
/// When that is not so within `patience`; the message names the first differences.
pub async fn equal(local: &Client, target: &Postgres, patience: Duration) {
    let mut left = vec!["nothing was compared".to_owned()];
    let deadline = tokio::time::Instant::now() + patience;
    while !left.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "{:#?}", &left[..left.len().min(5)]);
        tokio::time::sleep(Duration::from_millis(100)).await;
        left = match model(local).await {
            Ok(model) => match held(target).await {
                Ok(held) => differences(&model, &held),
                Err(error) => vec![error.to_string()],
            },
            Err(error) => vec![error.to_string()],
        };
    }
    // What stands beside the rows: no element without its document, and no failure that is over.
    for ns in DECLARED_FOR {
        let (db, name) = ns.split_once('.').unwrap();
        let orphans = format!(
            "SELECT count(*) FROM {db}.{name}_arr c WHERE NOT EXISTS (SELECT FROM {db}.{name} t WHERE t._id = c._id)"
        );
        if target.ask(&format!("SELECT to_regclass('{db}.{name}') IS NOT NULL")).await == ["t"] {
            assert_eq!(target.ask(&orphans).await, ["0"], "{ns}: elements of no document");
        }
    }
    let failed = "SELECT mongo_id, error FROM outrigger.sync_status WHERE state = 'FAILED'";
    eventually("no failure is told that is over", patience, async || {
        target.ask(failed).await.is_empty()
    })
    .await;
}
