//! Counts of times, in buckets that are at most an eighth wide: from nanoseconds to hours in a few kilobytes.

/// Buckets of each power of two.
const PARTS: u64 = 8;
/// Values below this have a bucket each.
const EXACT: u64 = 2 * PARTS;
const BUCKETS: usize = 512;

/// A histogram of nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    buckets: Box<[u64; BUCKETS]>,
    count: u64,
    sum: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: Box::new([0; BUCKETS]), count: 0, sum: 0, max: 0 }
    }
}

fn bucket_of(value: u64) -> usize {
    if value < EXACT {
        return value as usize;
    }
    let power = 63 - u64::from(value.leading_zeros());
    let part = (value >> (power - 3)) & (PARTS - 1);
    ((power - 3) * PARTS + part) as usize + PARTS as usize
}

/// The lowest value of a bucket.
fn start_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < EXACT {
        return bucket;
    }
    let (power, part) = ((bucket - PARTS) / PARTS + 3, (bucket - PARTS) % PARTS);
    (PARTS + part) << (power - 3)
}

impl Histogram {
    /// Counts a value.
    pub fn add(&mut self, value: u64) {
        self.buckets[bucket_of(value)] += 1;
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
        self.max = self.max.max(value);
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The highest value; 0 if there is none.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Their mean; 0 if there are none.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }

    /// A value that so large a part of all values does not exceed, off by an eighth at most; 0 if there are none.
    pub fn quantile(&self, part: f64) -> u64 {
        let wanted = (part * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return (start_of(bucket + 1) - 1).min(self.max);
            }
        }
        self.max
    }

    /// The buckets that hold something, as the lowest value of each and its count.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        self.buckets.iter().enumerate().filter(|(_, count)| **count != 0).map(|(at, count)| (start_of(at), *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_the_bucket_that_starts_at_or_before_it() {
        for value in (0..5000).chain((6..63).flat_map(|power| [(1 << power) - 1, 1 << power, (1 << power) + 1])) {
            let bucket = bucket_of(value);
            assert!(start_of(bucket) <= value && value < start_of(bucket + 1), "{value} in {bucket}");
            assert!(start_of(bucket + 1) - start_of(bucket) <= (value / 8).max(1), "{value}");
        }
        assert!(bucket_of(u64::MAX) < BUCKETS);
    }

    #[test]
    fn quantiles_are_near_the_values_that_were_added() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|value| histogram.add(value));
        assert_eq!((histogram.count(), histogram.max(), histogram.mean()), (1000, 1000, 500));
        assert!((500..=563).contains(&histogram.quantile(0.5)), "{}", histogram.quantile(0.5));
        assert_eq!(histogram.quantile(1.0), 1000);
        assert_eq!(Histogram::default().quantile(0.5), 0);
    }
}
