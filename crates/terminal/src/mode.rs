//! The option `--mode` of commands that attach XDP programs.

use clap::ValueEnum;
use packet_traits::attach::XdpMode;

/// How XDP programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Native if the driver does it, else generic
    Auto,
    /// In the driver
    Native,
    /// In the stack, on any interface
    Generic,
}

impl From<Mode> for XdpMode {
    fn from(mode: Mode) -> XdpMode {
        match mode {
            Mode::Auto => XdpMode::Auto,
            Mode::Native => XdpMode::Native,
            Mode::Generic => XdpMode::Generic,
        }
    }
}
