//! The first copy, by `COPY` in its binary form, into a table that has none of the rows.
//!
//! It is twice as quick as an upsert of the same rows, and all or nothing: where the server refuses one of them nothing
//! is there, and they go through [`batch`], which finds the row.
//!
//! ```text
//! BEGIN, fence, what is to be copied │ COPY │ rows, their end, what is said of them, COMMIT
//!             one round trip         │  one │  one more, and three for each child
//! ```

use std::pin::Pin;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, future::FutureExt};
use tokio_postgres::{Client, CopyInSink, Error, Statement};

use super::{
    batch::{self, RowWrite, Statements},
    cell::Cell,
    class::Class,
    connect::{Failed, Session},
    fence::{self, Fence},
    statement,
    table::Table,
};

/// Fewer rows go as an upsert, which is a round trip less.
pub const ROWS_MIN: usize = 50;

/// As it stands in PostgreSQL's manual; then no flags, and no extension of the header.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Bytes in one message, about.
const CHUNK: usize = 256 << 10;

/// Writes rows that are not there. False where that is not so, or a row is refused: nothing was written then.
///
/// # Errors
/// Where the server could not be asked, or this agent's lease is not the one that counts.
pub async fn copy(
    session: &mut Session,
    fence: Option<&Fence>,
    table: &Table,
    items: &[RowWrite],
) -> Result<bool, Failed> {
    let rows: Vec<_> = items.iter().filter_map(RowWrite::row).collect();
    let said = Statements::said(table, items);
    let own: Vec<_> = rows.iter().map(|row| row.cells.as_slice()).collect();
    let children: Vec<_> =
        (0..table.children.len()).map(|at| statement::child_rows(&rows, at)).collect();
    let prepare = async |client: &Client| client.prepare(&statement::copy(table)).await;
    let (begun, statement) = match fence::begin_and(session, fence, prepare).await {
        Ok(begun) => begun,
        Err(failed) => return not_copied(failed),
    };
    let copied = session
        .within(async |client| {
            let mut sink = send(client, statement, &own).await?;
            let children = table.children.iter().zip(&children);
            for (child, elements) in children.filter(|(_, elements)| !elements.is_empty()) {
                sink.as_mut().finish().await?;
                let statement = client.prepare(&statement::copy_child(child)).await?;
                sink = send(client, statement, elements).await?;
            }
            let end = async { sink.as_mut().finish().await.map(|_| Vec::new()) };
            let all = [end.boxed()].into_iter().chain(said.futures(client));
            batch::answers(all.chain([batch::commit(client)])).await.map(drop)
        })
        .await;
    let Err(failed) = copied else {
        begun.committed();
        return Ok(true);
    };
    begun.roll_back(session).await;
    not_copied(failed)
}

/// Where the server refuses it, the rows go the other way.
fn not_copied(failed: Failed) -> Result<bool, Failed> {
    match failed.class {
        Class::Rejected if !batch::is_of_the_table(&failed) => Ok(false),
        // The other way runs it again.
        Class::Conflict => Ok(false),
        _ => Err(failed),
    }
}

/// Begins a `COPY` and sends all of its rows. What is sent next on this connection comes behind its end, also where that is not
/// sent yet: the driver has one queue.
async fn send(
    client: &Client,
    statement: Statement,
    rows: &[&[Cell]],
) -> Result<Pin<Box<CopyInSink<Bytes>>>, Error> {
    let mut sink = Box::pin(client.copy_in(&statement).await?);
    // The driver closes it behind the end of the copy, within the transaction: nothing of it is left behind a pooler.
    drop(statement);
    let mut out = BytesMut::with_capacity(CHUNK + (CHUNK >> 2));
    out.put_slice(HEADER);
    for cells in rows {
        out.put_i16(cells.len() as i16);
        for cell in *cells {
            cell.put(&mut out);
        }
        if out.len() >= CHUNK {
            sink.send(out.split().freeze()).await?;
        }
    }
    // The end.
    out.put_i16(-1);
    sink.send(out.freeze()).await?;
    Ok(sink)
}
