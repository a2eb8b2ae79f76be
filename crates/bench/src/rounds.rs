//! Measuring cases in rounds: all of them one after the other, so that a machine that gets slower does so for all.

use std::error::Error;

use super::progress;
use packet_traits_terminal::interrupt::{Interrupt, Interrupted};

/// The figures of each counted round, in the order of the cases. `warm_up` rounds come first and do not count.
pub(super) fn measure<C>(
    cases: &[C],
    warm_up: u32,
    rounds: u32,
    interrupt: &Interrupt,
    figure: impl Fn(&C) -> Result<f64, Box<dyn Error>>,
) -> Result<Vec<Vec<f64>>, Box<dyn Error>> {
    let mut counted = Vec::new();
    let all = (0..warm_up + rounds).try_for_each(|round| {
        progress::show(counted.len(), rounds);
        // what is left is not measured after Ctrl-C, which ends the command below
        let until = cases.iter().take_while(|_| !interrupt.came());
        let figures = until.map(&figure).collect::<Result<Vec<f64>, Box<dyn Error>>>()?;
        if round >= warm_up {
            counted.push(figures);
        }
        Ok(())
    });
    progress::hide();
    interrupt.over(all, Interrupted::NOTHING_LEFT).map(|()| counted)
}
