//! The application: a shop that takes orders, and knows its MongoDB alone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mongodb::{
    Client, Collection,
    bson::{Document, doc},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const CUSTOMERS: i32 = 2_000;
const PRODUCTS: i32 = 500;

/// Runs until it is closed.
pub struct Shop {
    /// Documents that it has changed so far.
    pub changes: Arc<AtomicU64>,
    closes: CancellationToken,
    work: JoinHandle<()>,
}

impl Shop {
    pub fn opens(client: &Client) -> Self {
        let (changes, closes) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
        let work = tokio::spawn(take_orders(client.clone(), changes.clone(), closes.clone()));
        Self { changes, closes, work }
    }

    /// Takes no more orders. Returns how many changes there were.
    pub async fn closes(self) -> u64 {
        self.closes.cancel();
        self.work.await.expect("the application did not fail");
        self.changes.load(Ordering::Relaxed)
    }
}

/// What there is before the first order. Returns it in words.
pub async fn fill(client: &Client) -> String {
    let shop = client.database("shop");
    let customers =
        (0..CUSTOMERS).map(|id| doc! { "_id": id, "name": format!("Customer {id}"), "orders": 0 });
    shop.collection::<Document>("customers").insert_many(customers).await.expect("filled");
    let products = (0..PRODUCTS).map(
        |id| doc! { "_id": format!("SKU-{id:04}"), "price": f64::from(id) / 4.0, "stock": 1000 },
    );
    shop.collection::<Document>("products").insert_many(products).await.expect("filled");
    format!("{CUSTOMERS} customers and {PRODUCTS} products")
}

async fn take_orders(client: Client, made: Arc<AtomicU64>, stop: CancellationToken) {
    let mut rng = StdRng::seed_from_u64(1);
    let mut next = 0_i64;
    while !stop.is_cancelled() {
        for _ in 0..20 {
            let changes = one_step(&client, &mut rng, &mut next).await.expect("a local write");
            made.fetch_add(changes, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One thing that happens in a shop. Returns how many documents it changed.
async fn one_step(
    client: &Client,
    rng: &mut StdRng,
    next: &mut i64,
) -> mongodb::error::Result<u64> {
    let shop = client.database("shop");
    let orders: Collection<Document> = shop.collection("orders");
    let recent = doc! { "_id": (*next - rng.random_range(1..60)).max(0) };
    let sku = format!("SKU-{:04}", rng.random_range(0..PRODUCTS));
    Ok(match rng.random_range(0..100) {
        0..30 => {
            let customer = rng.random_range(0..CUSTOMERS);
            let order = doc! { "_id": *next, "customer": customer, "status": "new", "items": [{ "sku": &sku, "n": 1 }], "total": 9.75 };
            orders.insert_one(order).await?;
            *next += 1;
            let customers: Collection<Document> = shop.collection("customers");
            1 + customers
                .update_one(doc! { "_id": customer }, doc! { "$inc": { "orders": 1 } })
                .await?
                .modified_count
        }
        30..60 => {
            let products: Collection<Document> = shop.collection("products");
            products
                .update_one(doc! { "_id": sku }, doc! { "$inc": { "stock": -1 } })
                .await?
                .modified_count
        }
        60..75 => {
            let item = doc! { "sku": sku, "n": rng.random_range(1..5) };
            orders
                .update_one(recent, doc! { "$push": { "items": item }, "$inc": { "total": 3.5 } })
                .await?
                .modified_count
        }
        75..88 => {
            let status = ["paid", "packed", "sent"][rng.random_range(0..3)];
            let change = doc! { "$set": { "status": status, format!("log.{status}"): rng.random_range(0..1000) } };
            orders.update_one(recent, change).await?.modified_count
        }
        88..92 => {
            let replaced = doc! { "status": "corrected", "items": [], "total": 0.0 };
            orders.replace_one(recent, replaced).await?.modified_count
        }
        92..96 => orders.delete_one(recent).await?.deleted_count,
        _ => {
            // Cancelled and taken again under the same number.
            let deleted = orders.delete_one(recent.clone()).await?.deleted_count;
            let mut again = recent;
            again.insert("status", "taken again");
            if deleted > 0 {
                orders.insert_one(again).await?;
            }
            2 * deleted
        }
    })
}
