//! How full the queue may be, and its disk, before reading stops; and when it goes on. Pure.

/// At which fullness of the queue reading stops.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    pub max_bytes: u64,
    pub max_documents: u64,
    pub min_free_disk: u64,
}

pub(super) const DISK_LOW: &str =
    "the queue's disk would have less than `queue.min_free_disk` left while the queue drains";

impl QueueLimits {
    /// Why nothing more is read into a queue of so many documents and bytes, with so much of its disk free. Once reading
    /// has stopped it goes on only when a quarter is free again: else each batch that leaves would start and stop it.
    pub(super) fn reached(
        &self,
        (documents, bytes): (u64, u64),
        free_disk: Option<u64>,
        is_stopped: bool,
    ) -> Option<String> {
        let up_to = |max: u64| if is_stopped { max - max / 4 } else { max };
        if bytes >= up_to(self.max_bytes) {
            return Some("the queue is at `queue.max_bytes`".to_owned());
        }
        if documents >= up_to(self.max_documents) {
            return Some("the queue is at `queue.max_documents`".to_owned());
        }
        let to_spare = if is_stopped { self.min_free_disk / 4 } else { 0 };
        // Draining takes disk before it gives any back: sled writes what is left of a page anew, and
        // was seen to double its files (0.34.7, documents of 50 kB).
        let needed = self.min_free_disk.saturating_add(bytes).saturating_add(to_spare);
        free_disk.filter(|free| *free < needed).map(|_| DISK_LOW.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch leaves, and as much as there is room for is read: each line in the log is a change of `stopped`.
    #[test]
    fn a_full_queue_that_drains_says_once_that_reading_stops_and_once_that_it_goes_on() {
        let limits = QueueLimits { max_bytes: u64::MAX, max_documents: 10_000, min_free_disk: 100 };
        let (mut waiting, mut to_read, mut lines) = (0_u64, 12_000_u64, Vec::new());
        let mut is_stopped = false;
        while waiting + to_read > 0 {
            let reason = limits.reached((waiting, 0), Some(1_000), is_stopped);
            if reason.is_some() != is_stopped {
                is_stopped = reason.is_some();
                lines.push(waiting);
            }
            if !is_stopped {
                let read = to_read.min(500);
                (waiting, to_read) = (waiting + read, to_read - read);
            }
            // Nothing leaves before the queue is full.
            if !lines.is_empty() {
                waiting = waiting.saturating_sub(300);
            }
        }

        assert_eq!(lines, [10_000, 7_300]);
    }

    #[test]
    fn reading_goes_on_where_a_queue_of_one_document_is_empty_and_its_disk_has_some_to_spare() {
        let limits = QueueLimits { max_bytes: 1, max_documents: 1, min_free_disk: 100 };
        let is_reached =
            |waits, free, is_stopped| limits.reached(waits, Some(free), is_stopped).is_some();

        assert!(is_reached((1, 0), 1_000, false) && is_reached((0, 1), 1_000, false));
        assert!(!is_reached((0, 0), 1_000, true) && !is_reached((0, 0), 100, false));
        assert!(is_reached((0, 0), 99, false) && is_reached((0, 0), 124, true));
        assert!(!is_reached((0, 0), 125, true));
    }
}
