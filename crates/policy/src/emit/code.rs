//! Writing C: lines with their indentation, and numbers as people read them.

use std::{
    fmt::{self, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
};

use crate::policy::Type;

/// C text that grows line by line.
#[derive(Debug, Default)]
pub(super) struct Code {
    text: String,
    depth: usize,
}

impl Code {
    /// The text so far.
    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// A line.
    pub(super) fn line(&mut self, line: impl fmt::Display) {
        for _ in 0..self.depth {
            self.text.push('\t');
        }
        writeln!(self.text, "{line}").expect("a string takes all that is written");
    }

    /// An empty line, but at the start of a block.
    pub(super) fn blank(&mut self) {
        if !self.text.ends_with("{\n") {
            self.text.push('\n');
        }
    }

    /// A line at the margin of the function: a label.
    pub(super) fn label(&mut self, name: &str) {
        writeln!(self.text, "{name}:").expect("a string takes all that is written");
    }

    /// A line that opens a block, without its brace.
    pub(super) fn open(&mut self, line: impl fmt::Display) {
        self.line(format_args!("{line} {{"));
        self.depth += 1;
    }

    /// A block of its own, for its declarations.
    pub(super) fn open_scope(&mut self) {
        self.line("{");
        self.depth += 1;
    }

    /// The start of a function: its brace has a line of its own.
    pub(super) fn function(&mut self, head: impl fmt::Display) {
        self.line(head);
        self.open_scope();
    }

    /// Ends one block and begins the next, as in `} else {`.
    pub(super) fn turn(&mut self, line: impl fmt::Display) {
        self.depth -= 1;
        self.line(format_args!("}} {line} {{"));
        self.depth += 1;
    }

    /// The end of a block.
    pub(super) fn close(&mut self) {
        self.close_with("");
    }

    /// The end of a block with something behind its brace.
    pub(super) fn close_with(&mut self, behind: &str) {
        self.depth -= 1;
        self.line(format_args!("}}{behind}"));
    }

    /// Begins a case of a `switch`.
    pub(super) fn case(&mut self, value: &str) {
        self.depth -= 1;
        self.line(format_args!("case {value}:"));
        self.depth += 1;
    }

    /// What is done in no case.
    pub(super) fn default_case(&mut self) {
        self.depth -= 1;
        self.line("default:");
        self.depth += 1;
    }

    /// Ends a case.
    pub(super) fn end_case(&mut self) {
        self.line("break;");
    }

    /// A comment; text that would end it is taken apart.
    pub(super) fn comment(&mut self, text: &str) {
        let text = text.replace("*/", "* /").replace("/*", "/ *");
        let mut lines = text.lines();
        match (lines.next(), lines.clone().next()) {
            (Some(only), None) => self.line(format_args!("/* {only} */")),
            (Some(first), Some(_)) => {
                self.line("/*");
                self.line(format_args!(" * {first}"));
                for line in lines {
                    self.line(format_args!(" * {}", line.trim_end()));
                }
                self.line(" */");
            }
            (None, _) => {}
        }
    }
}

/// The C type of a number of this many bits.
pub(super) fn c_type(bits: u8) -> &'static str {
    match bits {
        0..=8 => "__u8",
        9..=16 => "__u16",
        17..=32 => "__u32",
        33..=64 => "__u64",
        65.. => "pt_u128",
    }
}

/// Bytes of that type.
pub(super) fn c_size(bits: u8) -> usize {
    usize::from(bits.clamp(8, 128)).div_ceil(8).next_power_of_two()
}

/// A constant of a type as C has it, without the form people read.
pub(super) fn literal(value: u128, of: Type) -> String {
    match of {
        Type::Signed => match value as i64 {
            // its absolute value is no number that C has
            i64::MIN => "(-0x7fffffffffffffffLL - 1)".to_owned(),
            signed if signed.unsigned_abs() < 1 << 31 => signed.to_string(),
            signed => format!("{signed}LL"),
        },
        _ if value > u64::MAX.into() => format!("PT_U128({:#x}, {:#x})", (value >> 64) as u64, value as u64),
        Type::Unsigned(_) | Type::Timestamp if value < 100_000 => value.to_string(),
        Type::Ipv4 => format!("{value:#010x}"),
        Type::Mac => format!("{value:#014x}ULL"),
        _ if value > u32::MAX.into() => format!("{value:#x}ULL"),
        _ => format!("{value:#x}"),
    }
}

/// A constant of a type as people read it, where C has it otherwise.
pub(super) fn readable(value: u128, of: Type) -> Option<String> {
    match of {
        Type::Ipv4 => Some(Ipv4Addr::from_bits(value as u32).to_string()),
        Type::Ipv6 => Some(Ipv6Addr::from_bits(value).to_string()),
        Type::Mac => {
            let bytes = (value as u64).to_be_bytes();
            Some(bytes[2..].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"))
        }
        Type::Uuid => {
            let digits = format!("{value:032x}");
            let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
            Some(parts.join("-"))
        }
        Type::Timestamp if value >= 100_000 => Some(format!("{value} ns")),
        Type::Unsigned(_) if value >= 100_000 => Some(value.to_string()),
        Type::Unsigned(_) | Type::Signed | Type::Timestamp | Type::Flag => None,
    }
}

/// A constant as C has it, with the form people read behind it.
pub(super) fn constant(value: u128, of: Type) -> String {
    match readable(value, of) {
        Some(readable) => format!("{} /* {readable} */", literal(value, of)),
        None => literal(value, of),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_c_and_readable() {
        for (value, of, expected) in [
            (0x0a00_0001, Type::Ipv4, "0x0a000001 /* 10.0.0.1 */"),
            (22, Type::Unsigned(16), "22"),
            (0xfd00 << 112 | 1, Type::Ipv6, "PT_U128(0xfd00000000000000, 0x1) /* fd00::1 */"),
            (0x0200_0000_0001, Type::Mac, "0x020000000001ULL /* 02:00:00:00:00:01 */"),
            (u64::MAX.into(), Type::Signed, "-1"),
            (1 << 63, Type::Signed, "(-0x7fffffffffffffffLL - 1)"),
            (u64::MAX.into(), Type::Unsigned(64), "0xffffffffffffffffULL /* 18446744073709551615 */"),
        ] {
            assert_eq!(constant(value, of), expected);
        }
    }

    #[test]
    fn a_comment_ends_where_it_should() {
        let mut code = Code::default();
        code.comment("log \"*/ evil(); /*\"");
        assert_eq!(code.into_text(), "/* log \"* / evil(); / *\" */\n");
    }

    #[test]
    fn types_are_as_wide_as_their_values() {
        for (bits, name, size) in
            [(2, "__u8", 1), (12, "__u16", 2), (24, "__u32", 4), (48, "__u64", 8), (128, "pt_u128", 16)]
        {
            assert_eq!((c_type(bits), c_size(bits)), (name, size));
        }
    }
}
