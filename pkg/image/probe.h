// What is this file? The formats that a node keeps (raw, qcow2, iso), told by
// their content alone, and the rules that make a file safe to hand to a
// hypervisor. No external tools, no I/O but through a Reader.
//
// Two checks at two times: CheckHead on the first bytes of a transfer, before
// anything is stored, so that a login page costs no disk; Probe on the complete
// file, before it is published. What CheckHead refuses, Probe refuses too.
//
// The names a hypervisor would read from an image (a backing file, an external
// data file, the extents of a VMDK) are attacks on the node until proven
// otherwise: such images are refused, whatever they name.
//
// Thread-safety: free functions without state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "pkg/base/status.h"
#include "pkg/image/reader.h"

namespace bim::image {

enum class Format { kRaw, kQcow2, kIso };

// "raw", "qcow2" or "iso".
std::string_view FormatName(Format format);

struct ImageInfo {
  Format format = Format::kRaw;
  uint64_t virtual_size = 0;  // bytes that a guest sees
  uint64_t file_size = 0;     // bytes
};

// Judges the first bytes of what a source sends: at least 512 unless the whole
// content is shorter; a few KiB are plenty.
// `is_whole_file` says that nothing follows. `content_type` is what the source
// claims (may be empty): it is quoted, and decides nothing.
//
// FAILED_PRECONDITION: this is no disk image that we take - an HTML, XML or
// JSON text, an archive or a compressed file, an image format of another
// hypervisor, a qcow2 whose header breaks a rule of Probe, or nothing at all.
// The message names what came and what to do.
//
// OK promises nothing: whatever is not recognised may be a raw disk. A raw disk
// of random bytes is refused with a probability below 1e-7. Text is recognised
// only if the first 512 bytes are text throughout, and text of no known kind
// (a bare "404 not found") only if it is the whole content and its size is not
// a multiple of 512, which Probe would refuse in any case.
base::Status CheckHead(std::span<const std::byte> head, bool is_whole_file,
                       std::string_view content_type);

// Recognises a complete file of `file_size` bytes and holds it to the rules:
// - not empty, its size a multiple of 512, not refused by CheckHead;
// - qcow2, versions 2 and 3 (QEMU, docs/interop/qcow2.txt): a sane header, no
//   backing file, no external data file, no encryption, no incompatible feature
//   that we do not know, not marked corrupt; zlib or zstd, extended L2 entries,
//   internal snapshots and the dirty bit are fine. Every table lies within the
//   file and every cluster that the active disk uses begins within it;
// - iso (ECMA-119): the volume that its primary descriptor declares lies within
//   the file, unless the descriptor contradicts itself;
// - everything else is raw.
//
// FAILED_PRECONDITION: a rule is broken, and no second transfer mends it.
// DATA_LOSS: the file is cut short; the message says where it should go on.
// Failures of the Reader are returned with their code.
//
// Not guaranteed: that the content is what was asked for (a digest proves
// that), that the last cluster is there to its end (QEMU leaves it partial
// too), that the data of internal snapshots is complete, that refcounts add up.
//
// Blocks as its Reader does. Reads at most the first 2 MiB and then each table
// once, whatever the file says; holds at most 40 MiB of memory, and that only
// for an L1 table of the largest size (a disk of 2 TiB with clusters of 64 KiB
// needs 32 KiB).
base::Result<ImageInfo> Probe(Reader& reader, uint64_t file_size);

}  // namespace bim::image
