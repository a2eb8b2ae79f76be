//! Handles: what a datagram's `SO_MARK` control message says where its traits are.

use std::ops::Range;

use super::abi::TRAITS_BATCH_MAX;

/// The mark of a datagram that came before the socket received traits, and had none of its own.
const UNKNOWN: u32 = 0;

/// The mark of a datagram that had neither traits nor a mark of its own.
const PLAIN: u32 = u32::MAX - 1;

/// The mark of a datagram for which there was no slot.
const NO_SLOT: u32 = u32::MAX;

/// Where a datagram's traits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handle {
    /// Nowhere: it had none, and its own mark was 0.
    Plain,
    /// It is not known: it was not given a slot, or the socket does not get handles.
    Lost,
    /// In the slot with this handle.
    Slot(u32),
}

impl Handle {
    /// What the `SO_MARK` control message says; `None` if there was no such message.
    #[inline]
    pub(crate) const fn of_mark(mark: Option<u32>) -> Handle {
        match mark {
            Some(PLAIN) => Handle::Plain,
            None | Some(UNKNOWN | NO_SLOT) => Handle::Lost,
            Some(handle) => Handle::Slot(handle),
        }
    }
}

/// Cuts handles into runs that one get at level `SOL_TRAITS_DATAGRAMS` answers for: each one more than the one before, and
/// no more than [`TRAITS_BATCH_MAX`] of them. Where handles start over from 1, so does a run.
pub(crate) fn runs(handles: &[u32]) -> impl Iterator<Item = Range<usize>> + use<'_> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = &handles[start..];
        if rest.is_empty() {
            return None;
        }
        let breaks = |pair: &[u32]| pair[0].checked_add(1) != Some(pair[1]);
        let len = rest.windows(2).position(breaks).map_or(rest.len(), |last| last + 1).min(TRAITS_BATCH_MAX);
        start += len;
        Some(start - len..start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the runs begin and end.
    fn run_list(handles: &[u32]) -> Vec<(usize, usize)> {
        runs(handles).map(|run| (run.start, run.end)).collect()
    }

    #[test]
    fn marks_that_no_slot_has_are_told_apart() {
        assert_eq!(Handle::of_mark(None), Handle::Lost);
        assert_eq!(Handle::of_mark(Some(0)), Handle::Lost);
        assert_eq!(Handle::of_mark(Some(u32::MAX - 1)), Handle::Plain);
        assert_eq!(Handle::of_mark(Some(u32::MAX)), Handle::Lost);
        assert_eq!(Handle::of_mark(Some(7)), Handle::Slot(7));
    }

    #[test]
    fn consecutive_handles_make_one_run() {
        assert_eq!(run_list(&[]), []);
        assert_eq!(run_list(&[5]), [(0, 1)]);
        assert_eq!(run_list(&[5, 6, 7]), [(0, 3)]);
        assert_eq!(run_list(&[5, 6, 8, 9, 4, 4]), [(0, 2), (2, 4), (4, 5), (5, 6)]);
    }

    #[test]
    fn a_run_ends_where_handles_start_over() {
        assert_eq!(run_list(&[u32::MAX - 3, u32::MAX - 2, 1, 2]), [(0, 2), (2, 4)]);
    }

    #[test]
    fn a_run_is_no_longer_than_one_call_answers_for() {
        let handles: Vec<u32> = (100..140).collect();
        assert_eq!(run_list(&handles), [(0, 16), (16, 32), (32, 40)]);
    }
}
