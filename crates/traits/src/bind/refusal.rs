//! What a verifier's log says of the program it refuses: why, at which line of the source, at which instruction.
//!
//! Linux before 7.3 ends its log with the reason, behind the instructions that led there. Linux 7.3 adds a report with
//! sections (`kernel/bpf/diagnostics.c`): "Verification failed", "Reason", "At", and at last a suggestion; a line or two of
//! the old kind stand before or behind it. Up to Linux 6.9 lines of the source have no file and number.

use std::fmt;

/// The start of the line that begins the report of Linux 7.3 (`bpf_diag_header`).
const REPORT: &str = "Verification failed: ";

/// The sections of the report that are not ours to show.
const SECTIONS: [&str; 5] = ["Reason:", "At:", "Active lock:", "Causal path:", "Suggestion:"];

/// Lines that are neither instructions nor reasons.
const STATISTICS: [&str; 3] = ["processed ", "verification time", "stack depth"];

/// Starts of lines that say how the verifier went on.
const TRACE: [&str; 10] = [
    "; ",
    "from ",
    "returning from callee",
    "to caller at",
    "caller:",
    "callee:",
    "Func#",
    "Validating ",
    "mark_precise:",
    "propagating ",
];

/// Why a program is refused, and where.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    reason: String,
    /// The line of the source, and its file and number if the log has them.
    source: Option<(String, Option<String>)>,
    /// The instruction's number, and what it does.
    instruction: Option<String>,
}

impl Refusal {
    /// `None` if the log says nothing.
    pub(super) fn read(log: &str) -> Option<Refusal> {
        let (trace, report) = split(log);
        let mut refusal = trace_of(&trace);
        if let Some(report) = report_of(&report) {
            refusal.reason = report.reason;
            refusal.source = refusal.source.or(report.source);
            refusal.instruction = refusal.instruction.or(report.instruction);
        }
        (!refusal.reason.is_empty()).then_some(refusal)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        match &self.source {
            Some((code, Some(place))) => write!(f, ", at {place}: `{code}`")?,
            Some((code, None)) => write!(f, ", at `{code}`")?,
            None => {}
        }
        match &self.instruction {
            Some(instruction) => write!(f, ", instruction {instruction}"),
            None => Ok(()),
        }
    }
}

/// The lines of the log that are not of the report, without the statistics, and those of the report.
fn split(log: &str) -> (Vec<&str>, Vec<&str>) {
    let lines = || log.lines().map(str::trim_end);
    let Some(start) = lines().position(|line| line.starts_with(REPORT)) else {
        return (lines().filter(|line| is_telling(line)).collect(), Vec::new());
    };
    let in_report = |line: &&str| line.is_empty() || line.starts_with(' ') || SECTIONS.contains(line);
    let length = 1 + lines().skip(start + 1).take_while(in_report).count();
    let others = lines().take(start).chain(lines().skip(start + length));
    (others.filter(|line| is_telling(line)).collect(), lines().skip(start).take(length).collect())
}

fn is_telling(line: &str) -> bool {
    !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start))
}

/// From the instructions and what stands behind the last of them.
fn trace_of(lines: &[&str]) -> Refusal {
    let reason = lines.iter().rev().take_while(|line| !is_trace(line)).collect::<Vec<_>>();
    // with a log of the way alone, its end
    let reason = if reason.is_empty() { lines.last().into_iter().collect() } else { reason };
    Refusal {
        reason: reason.into_iter().take(2).rev().map(|line| line.trim()).collect::<Vec<_>>().join(", "),
        source: lines.iter().rev().find_map(|line| line.strip_prefix("; ")).map(|line| match line.rsplit_once(" @ ") {
            Some((code, place)) => (code.to_owned(), Some(place.to_owned())),
            None => (line.to_owned(), None),
        }),
        instruction: lines.iter().rev().find_map(|line| instruction(line)),
    }
}

fn is_trace(line: &str) -> bool {
    line.starts_with(' ')
        || TRACE.iter().any(|start| line.starts_with(start))
        || line.split_once(": ").is_some_and(|(number, _)| is_number(number))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Of a line `34: (61) r0 = *(u32 *)(r1 +0)    ; R0=scalar()`, the number and the instruction.
fn instruction(line: &str) -> Option<String> {
    let (number, rest) = line.split_once(": (")?;
    let (_, rest) = rest.split_once(") ")?;
    is_number(number).then(|| format!("{number}, {}", rest.split(';').next().unwrap_or_default().trim_end()))
}

/// From the report: its title, and the first sentence of its reason; what it marks in the source and the instructions.
fn report_of(lines: &[&str]) -> Option<Refusal> {
    let title = lines.first()?.strip_prefix(REPORT)?;
    let title = title.split_once(": ").map_or(title, |(_, problem)| problem);
    let reason = section(lines, "Reason:").join(" ");
    let sentence = reason.split_once(". ").map_or(reason.as_str(), |(sentence, _)| sentence).trim_end_matches('.');

    let at = section(lines, "At:");
    // "bad @ one.bpf.c:8:9": the function, the file, the line and the column
    let place = at.first().and_then(|line| line.split_once(" @ ")).map(|(_, place)| {
        place.rsplit_once(':').map_or(place, |(line, column)| if is_number(column) { line } else { place }).to_owned()
    });
    let marked = || at.iter().filter_map(|line| line.strip_prefix(">>>")?.split_once(" | "));
    let is_instruction = |text: &str| text.starts_with('(');
    Some(Refusal {
        reason: if sentence.is_empty() { title.to_owned() } else { format!("{title}: {sentence}") },
        source: marked().find(|(_, text)| !is_instruction(text)).map(|(_, code)| (code.trim().to_owned(), place)),
        instruction: marked()
            .find(|(_, text)| is_instruction(text))
            .and_then(|(number, text)| instruction(&format!("{}: {text}", number.trim()))),
    })
}

/// The lines of the report's first section of this name.
fn section<'l>(lines: &[&'l str], name: &str) -> Vec<&'l str> {
    let from = lines.iter().skip_while(|line| **line != name).skip(1);
    from.take_while(|line| line.starts_with(' ')).map(|line| line.trim()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(log: &str) -> String {
        Refusal::read(log).map(|refusal| refusal.to_string()).unwrap_or_default()
    }

    /// A program that reads through `data_end`, as Linux 6.18 refuses it.
    const OLD: &str = "\
0: R1=ctx() R10=fp0
; return *(int *)(long)ctx->data_end; @ one.bpf.c:8
33: (61) r1 = *(u32 *)(r1 +4)         ; R1=pkt_end()
34: (61) r0 = *(u32 *)(r1 +0)
R1 invalid mem access 'pkt_end'
processed 61 insns (limit 1000000) max_states_per_insn 0 total_states 5 peak_states 5 mark_read 0

";

    /// The same, by Linux 7.3.
    const NEW: &str = "\
; return *(int *)(long)ctx->data_end; @ one.bpf.c:8
33: (61) r1 = *(u32 *)(r1 +4)         ; R1=pkt_end()
34: (61) r0 = *(u32 *)(r1 +0)
R1 invalid mem access 'pkt_end'

Verification failed: Register Type Safety: Invalid dereference

Reason:
  R1 has type pkt_end here, which is not valid for this memory access.

At:
  bad @ one.bpf.c:8:9
  Source context:
       6 | ...
       7 | ...
  >>>  8 |         return *(int *)(long)ctx->data_end;
         |         ^-- error: invalid dereference of R1 (pkt_end)
       9 | ...
      10 | ...
  Instruction context:
       32 | (63) *(u32 *)(r2 +0) = r3
       33 | (61) r1 = *(u32 *)(r1 +4)
  >>>  34 | (61) r0 = *(u32 *)(r1 +0)
       35 | (95) exit
       36 | (bf) r6 = r2

Causal path:
  bad @ one.bpf.c:8:28
  Source context:
       6 | ...
       7 | ...
  >>>  8 |         return *(int *)(long)ctx->data_end;
         |         ^-- update: R1 changed from context pointer at offset 0 to pkt_end at offset 0
       9 | ...
      10 | ...
  Instruction context:
       31 | (b4) w3 = 7
       32 | (63) *(u32 *)(r2 +0) = r3
  >>>  33 | (61) r1 = *(u32 *)(r1 +4)
       34 | (61) r0 = *(u32 *)(r1 +0)
       35 | (95) exit

Suggestion:
  Preserve a pointer-valued register where needed, or reload and revalidate the pointer after scalar
  arithmetic, helper calls, or other operations that can invalidate it.

processed 61 insns (limit 1000000) max_states_per_insn 0 total_states 5 peak_states 5 mark_read 0

";

    #[test]
    fn before_7_3_the_reason_is_what_follows_the_last_instruction() {
        assert_eq!(
            said(OLD),
            "R1 invalid mem access 'pkt_end', at one.bpf.c:8: `return *(int *)(long)ctx->data_end;`, \
             instruction 34, r0 = *(u32 *)(r1 +0)"
        );
        let two = "; head[who] = 1; @ five.bpf.c:13\n85: (73) *(u8 *)(r2 +0) = r1\n\
                   invalid access to packet, off=0 size=1, R2(id=6,off=0,r=0)\nR2 offset is outside of the packet\n\
                   processed 73 insns (limit 1000000) max_states_per_insn 0 total_states 6 peak_states 6 mark_read 0\n";
        assert_eq!(
            said(two),
            "invalid access to packet, off=0 size=1, R2(id=6,off=0,r=0), R2 offset is outside of the packet, \
             at five.bpf.c:13: `head[who] = 1;`, instruction 85, *(u8 *)(r2 +0) = r1"
        );
    }

    #[test]
    fn a_function_that_returned_is_not_the_reason() {
        let log = "; } @ four.bpf.c:12\n150: (95) exit\nreturning from callee:\n frame1: R0=0 R1=1\nto caller at 28:\n \
                   R0=0 R6=ringbuf_mem(ref_obj_id=2,sz=8)\n40: (85) call pc+110\n\
                   Func#2 ('helper') is global and assumed valid.\n43: (95) exit\n\
                   Unreleased reference id=2 alloc_insn=5\n\
                   BPF_EXIT instruction in main prog would lead to reference leak\nprocessed 76 insns (limit 1000000)\n";
        assert_eq!(
            said(log),
            "Unreleased reference id=2 alloc_insn=5, BPF_EXIT instruction in main prog would lead to reference leak, \
             at four.bpf.c:12: `}`, instruction 43, exit"
        );
    }

    /// Linux 6.1, and what libbpf puts in the log's place.
    #[test]
    fn lines_of_the_source_may_have_no_place() {
        let log = "; return bpf_rdonly_cast((const void *)address, type);\n193: (18) r2 = 0x7b6                  ; R2_w=1974\n\
                   195: <invalid kfunc call>\nkfunc 'bpf_rdonly_cast' is referenced but wasn't resolved\n\
                   processed 17 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0\n";
        assert_eq!(
            said(log),
            "kfunc 'bpf_rdonly_cast' is referenced but wasn't resolved, \
             at `return bpf_rdonly_cast((const void *)address, type);`, instruction 193, r2 = 0x7b6"
        );
    }

    #[test]
    fn from_7_3_the_reason_is_the_reports_not_its_suggestion() {
        assert_eq!(
            said(NEW),
            "Invalid dereference: R1 has type pkt_end here, which is not valid for this memory access, \
             at one.bpf.c:8: `return *(int *)(long)ctx->data_end;`, instruction 34, r0 = *(u32 *)(r1 +0)"
        );
        // of the reason, one sentence; a line of the old kind may stand behind the report
        let log = "; head[who] = 1; @ five.bpf.c:13\n85: (73) *(u8 *)(r2 +0) = r1\n\n\
                   Verification failed: Memory Safety: Access outside bounds\n\nReason:\n  \
                   The verifier cannot prove offset + access_size <= object_size. Here, the minimal bound for a\n  \
                   memory access is 4 and is outside of the object of size 0.\n\nSuggestion:\n  \
                   Add or adjust a bounds check.\n\nR2 min value is outside of the allowed memory range\n\
                   processed 73 insns (limit 1000000)\n";
        assert_eq!(
            said(log),
            "Access outside bounds: The verifier cannot prove offset + access_size <= object_size, \
             at five.bpf.c:13: `head[who] = 1;`, instruction 85, *(u8 *)(r2 +0) = r1"
        );
    }

    #[test]
    fn a_report_alone_says_where() {
        let log = "unreachable insn 3\n\nVerification failed: Program Structure: Unreachable instruction\n\n\
                   Reason:\n  Instruction 3 is not reachable from the program entry point.\n\n\
                   At:\n  bad @ six.bpf.c:7:2\n  Source context:\n      5 | ...\n      6 | ...\n  \
                   >>> 7 |         asm volatile(\"goto +0; r0 = 0; exit; r0 = 1;\");\n        \
                   |         ^-- error: unreachable instruction\n  Instruction context:\n        2 | (95) exit\n  \
                   >>>   3 | (b7) r0 = 1\n\nSuggestion:\n  Remove the unreachable instruction.\n\nprocessed 0 insns\n";
        assert_eq!(
            said(log),
            "Unreachable instruction: Instruction 3 is not reachable from the program entry point, \
             at six.bpf.c:7: `asm volatile(\"goto +0; r0 = 0; exit; r0 = 1;\");`, instruction 3, r0 = 1"
        );
        assert_eq!(said("unreachable insn 3\nprocessed 0 insns (limit 1000000)\n"), "unreachable insn 3");
    }

    #[test]
    fn a_log_that_says_nothing_has_no_reason() {
        assert_eq!(Refusal::read(""), None);
        assert_eq!(Refusal::read("processed 0 insns (limit 1000000)\n\n"), None);
    }
}
