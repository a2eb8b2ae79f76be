//! Counts of times, from nanoseconds to centuries in a few kilobytes.

use hdrhistogram::Histogram as Buckets;

/// Significant decimal digits: a bucket is at most a sixteenth wide.
const DIGITS: u8 = 1;

/// A histogram of nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    buckets: Buckets<u64>,
    // exact, where the buckets are not
    sum: u64,
    max: u64,
}

/// Values that lie near each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bucket {
    /// The lowest value that it can have.
    pub start: u64,
    /// The highest.
    pub last: u64,
    /// How many it has.
    pub count: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        let buckets = Buckets::new(DIGITS).expect("a number of digits from 0 to 5");
        Histogram { buckets, sum: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts a value.
    pub fn add(&mut self, value: u64) {
        // it grows as needed, up to the highest value
        if self.buckets.record(value).is_err() {
            self.buckets.saturating_record(value);
        }
        self.sum = self.sum.saturating_add(value);
        self.max = self.max.max(value);
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.buckets.len()
    }

    /// The highest value; 0 if there is none.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Their mean; 0 if there are none.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count()).unwrap_or(0)
    }

    /// A value that so large a part of all values does not exceed, off by a sixteenth at most; 0 if there are none.
    pub fn quantile(&self, part: f64) -> u64 {
        self.buckets.value_at_quantile(part).min(self.max)
    }

    /// The buckets that hold something, in order.
    pub fn buckets(&self) -> impl Iterator<Item = Bucket> {
        self.buckets.iter_recorded().map(|recorded| {
            let value = recorded.value_iterated_to();
            let (start, last) = (self.buckets.lowest_equivalent(value), self.buckets.highest_equivalent(value));
            Bucket { start, last, count: recorded.count_at_value() }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_a_bucket_that_is_a_sixteenth_wide_at_most() {
        for value in (0..5000).chain((6..63).flat_map(|power| [(1 << power) - 1, 1 << power, (1 << power) + 1])) {
            let mut histogram = Histogram::default();
            histogram.add(value);
            let found: Vec<Bucket> = histogram.buckets().collect();
            let [Bucket { start, last, count: 1 }] = found[..] else { panic!("{value}: {found:?}") };
            assert!(start <= value && value <= last, "{value} in {found:?}");
            assert!(last - start < (value / 16).max(1), "{value} in {found:?}");
        }
        let mut histogram = Histogram::default();
        histogram.add(u64::MAX);
        assert_eq!((histogram.count(), histogram.max()), (1, u64::MAX));
    }

    #[test]
    fn quantiles_are_near_the_values_that_were_added() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|value| histogram.add(value));
        assert_eq!((histogram.count(), histogram.max(), histogram.mean()), (1000, 1000, 500));
        assert!((500..=532).contains(&histogram.quantile(0.5)), "{}", histogram.quantile(0.5));
        assert_eq!(histogram.quantile(1.0), 1000);
        assert_eq!(Histogram::default().quantile(0.5), 0);
    }
}
