//! The copy is a PostgreSQL, which is asked in SQL while the application, which does not know of it, writes its MongoDB. At the
//! end every row is held against the document that it is to be.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use mongodb::{
    Client,
    bson::{Bson, Document, RawDocumentBuf, doc},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    shop::{self, Shop},
    show::{Table, conclude, say, summary, verified},
    support::{
        agent::Agent,
        mongod::Mongod,
        postgres::{Postgres, hex},
        proxy::Proxy,
    },
};

const DECLARED: &str = r#"
[[column]]
collection = "shop.orders"
path = "status"
type = "text"

[[column]]
collection = "shop.orders"
path = "total"
type = "double precision"

[[child]]
collection = "shop.orders"
path = "items"
table = "orders_items"
columns = [{ path = "sku", type = "text" }, { path = "n", type = "integer" }]
"#;

/// Asked all the time.
const TURNOVER: &str = "SELECT count(*), sum(total) FROM shop.orders";

/// Asked at the end: by a column, by the elements of an array, and by what nobody has declared.
const QUESTIONS: [&str; 3] = [
    "SELECT status, count(*), sum(total) FROM shop.orders GROUP BY status ORDER BY status",
    "SELECT sku, sum(n) AS sold FROM shop.orders_items GROUP BY sku ORDER BY sold DESC, sku LIMIT 3",
    "SELECT doc->>'name', doc->>'orders' FROM shop.customers ORDER BY (doc->>'orders')::int DESC, _id LIMIT 3",
];

const COLLECTIONS: [&str; 3] = ["customers", "orders", "products"];

/// Whether every row equals its document in the end, and nothing else is there.
pub async fn demo() -> bool {
    say("starting the application's MongoDB and a PostgreSQL (on 127.0.0.1)");
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    let line = Proxy::to(target.port).await;
    let stock = shop::fill(&local.client).await;
    say(&format!("the shop has {stock}; starting the agent, with these columns declared:"));
    println!("{}", DECLARED.trim_end().replace('\n', "\n    "));
    let mut agent = Agent::into_postgres(&local.uri(), &Postgres::uri_at(line.port), DECLARED);
    agent.start(&[]);
    agent.streaming().await;
    println!();
    say("first copy done; the application starts taking orders, and somebody asks PostgreSQL:");
    say(&format!("{TURNOVER}\n"));

    let shop = Shop::opens(&local.client);
    let ask = async || {
        // There is no table before the first order.
        let turnover = target.try_ask(TURNOVER).await.map(|rows| rows.concat());
        format!("  {:>16}", turnover.unwrap_or_default().replace('|', "  "))
    };
    let last = "  count, turnover";
    let table = Table { agent: &agent, changes: shop.changes.clone(), last, ask };
    let caught_up = table.watch_over_an_outage(&line, "PostgreSQL").await;
    let changes = shop.closes().await;
    let (wanted, left) = compared(&local.client, &target).await;
    table.line("the application has stopped").await;

    println!();
    for sql in QUESTIONS {
        say(&format!("{sql};"));
        for row in target.ask(sql).await {
            println!("    {}", row.replace('|', "  "));
        }
    }
    println!();
    let is_verified = verified(&agent);
    say(
        "comparing every row with its document: its bytes by their hash, the JSON, columns, elements",
    );
    let rows: usize = wanted.values().map(Vec::len).sum();
    let size = format!("rows                         {rows} in {} tables", wanted.len());
    summary(&agent, changes, &size, caught_up);
    conclude(&left, "Every row equals its document.");
    left.is_empty() && is_verified
}

/// Of each table its rows, in the order of their keys: the hash of the BSON, and what SQL is to say of the document.
type Tables = BTreeMap<&'static str, Vec<(String, Value)>>;

/// What is to be there, and what differs from it still when everything has had its time.
async fn compared(local: &Client, target: &Postgres) -> (Tables, Vec<String>) {
    let wanted = wanted(local).await.expect("MongoDB can be read");
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        let left = match held(target).await {
            Ok(held) => differences(&wanted, &held),
            Err(error) => vec![error.to_string()],
        };
        if left.is_empty() || Instant::now() > give_up {
            return (wanted, left);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn wanted(local: &Client) -> mongodb::error::Result<Tables> {
    let mut tables = Tables::new();
    for name in COLLECTIONS {
        let collection = local.database("shop").collection::<RawDocumentBuf>(name);
        let mut found = collection.find(doc! {}).sort(doc! { "_id": 1 }).await?;
        let rows = tables.entry(name).or_default();
        while found.advance().await? {
            let raw = found.current();
            let document = Document::try_from(raw).expect("what the application has written");
            rows.push((hex(&Sha256::digest(raw.as_bytes())), row(name, &document)));
        }
    }
    Ok(tables)
}

fn row(name: &str, document: &Document) -> Value {
    let whole = json(&Bson::Document(document.clone()));
    if name != "orders" {
        return json!([whole]);
    }
    let of = |path: &str| document.get(path).map_or(Value::Null, json);
    let items = document.get_array("items").map_or(&[][..], Vec::as_slice);
    let items: Vec<_> = items
        .iter()
        .filter_map(Bson::as_document)
        .map(|item| json!([item.get("sku").map(json), item.get("n").map(json)]))
        .collect();
    json!([whole, of("status"), of("total"), items])
}

/// As PostgreSQL has it, whose numbers know of no types.
fn json(value: &Bson) -> Value {
    match value {
        Bson::Double(v) if v.trunc() == *v => json!(*v as i64),
        Bson::Array(elements) => elements.iter().map(json).collect(),
        Bson::Document(fields) => {
            fields.iter().map(|(name, of)| (name.clone(), json(of))).collect()
        }
        other => other.clone().into_relaxed_extjson(),
    }
}

async fn held(target: &Postgres) -> Result<Tables, tokio_postgres::Error> {
    let mut tables = Tables::new();
    for name in COLLECTIONS {
        let declared = match name {
            "orders" => {
                ", status, total, coalesce((SELECT jsonb_agg(jsonb_build_array(sku, n) ORDER BY position) \
                 FROM shop.orders_items i WHERE i._id = t._id), '[]')"
            }
            _ => "",
        };
        let sql = format!(
            "SELECT encode(hash, 'hex'), jsonb_build_array(doc{declared}) FROM shop.{name} t ORDER BY _id"
        );
        let rows = target.try_ask(&sql).await?.into_iter().map(|row| {
            let (hash, values) = row.split_once('|').expect("two columns");
            (hash.to_owned(), serde_json::from_str(values).expect("JSON"))
        });
        tables.insert(name, rows.collect());
    }
    let orphans = "SELECT count(*) FROM shop.orders_items i WHERE NOT EXISTS (SELECT FROM shop.orders o WHERE o._id = i._id)";
    let orphans = target.try_ask(orphans).await?.concat();
    assert_eq!(orphans, "0", "elements of no document");
    Ok(tables)
}

fn differences(wanted: &Tables, held: &Tables) -> Vec<String> {
    let mut found = Vec::new();
    for (name, wanted) in wanted {
        let held = held.get(name).map_or(&[][..], Vec::as_slice);
        if wanted.len() != held.len() {
            found.push(format!("{name}: {} rows for {} documents", held.len(), wanted.len()));
        }
        let pairs = wanted.iter().zip(held).filter(|(wanted, held)| wanted != held);
        found.extend(pairs.map(|(wanted, held)| format!("{name}: {held:?} for {wanted:?}")));
    }
    found
}
