//! What is reported of many samples: the median, which a disturbed sample does not move, and the spread around it.

/// The middle of a distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Summary {
    /// Half of the samples are below it.
    pub(super) median: f64,
    /// Distance between the quartiles: half of the samples lie in a range this wide.
    pub(super) spread: f64,
}

impl Summary {
    /// Summarises samples; `None` if there are none.
    pub(super) fn of(samples: impl IntoIterator<Item = f64>) -> Option<Summary> {
        let mut samples: Vec<f64> = samples.into_iter().collect();
        samples.sort_by(f64::total_cmp);
        let last = samples.len().checked_sub(1)?;
        // linear between the two nearest samples
        let quantile = |part: f64| {
            let place = part * last as f64;
            let (below, above) = (samples[place.floor() as usize], samples[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Some(Summary { median: quantile(0.5), spread: quantile(0.75) - quantile(0.25) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wild_sample_moves_nothing() {
        let summary = Summary::of([3.0, 1.0, 1000.0, 2.0, 4.0]).unwrap();
        assert_eq!(summary, Summary { median: 3.0, spread: 2.0 });
    }

    #[test]
    fn an_even_number_of_samples_has_its_median_between_two() {
        let summary = Summary::of([1.0, 2.0]).unwrap();
        assert_eq!(summary, Summary { median: 1.5, spread: 0.5 });
    }

    #[test]
    fn no_samples_have_no_summary() {
        assert_eq!(Summary::of([]), None);
    }
}
