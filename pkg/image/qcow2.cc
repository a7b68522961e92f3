#include "pkg/image/qcow2.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace bim::image {
namespace {

using std::string_view_literals::operator""sv;

// QEMU's limits, block/qcow2.h.
constexpr uint32_t kMinClusterBits = 9;
constexpr uint32_t kMaxClusterBits = 21;
constexpr uint32_t kMinExtendedL2ClusterBits = 14;  // 32 sectors
constexpr uint64_t kMaxL1Bytes = 32 << 20;
constexpr uint64_t kMaxRefcountTableBytes = 8 << 20;
constexpr uint64_t kMaxSnapshotTableBytes = 64 << 20;
constexpr uint32_t kMaxSnapshots = 65536;
constexpr uint32_t kMaxSnapshotExtraBytes = 1024;
constexpr uint32_t kMaxBackingNameBytes = 1023;

constexpr uint32_t kHeaderBytesV2 = 72;
constexpr uint32_t kHeaderBytesV3 = 104;
constexpr size_t kSnapshotHeaderBytes = 40;

// Incompatible features.
constexpr uint64_t kDirty = 1 << 0;
constexpr uint64_t kCorrupt = 1 << 1;
constexpr uint64_t kExternalData = 1 << 2;
constexpr uint64_t kCompressionType = 1 << 3;
constexpr uint64_t kExtendedL2 = 1 << 4;
constexpr uint64_t kKnownFeatures =
    kDirty | kCorrupt | kExternalData | kCompressionType | kExtendedL2;

// Header extensions.
constexpr uint32_t kExtensionEnd = 0;
constexpr uint32_t kExtensionEncryption = 0x0537be77;
constexpr uint32_t kExtensionExternalData = 0x44415441;

// Entries of the L1 and L2 tables.
constexpr uint64_t kOffsetMask = 0x00fffffffffffe00;
constexpr uint64_t kCompressed = uint64_t{1} << 62;
constexpr uint64_t kReadsAsZero = 1;
// The refcount table has no flags but reserves the low bits.
constexpr uint64_t kRefcountOffsetMask = ~uint64_t{511};

// How much of a table is read at once.
constexpr size_t kPiece = 64 << 10;

std::string Number(uint64_t n) { return std::to_string(n); }

// "the qcow2 header's cluster_bits is 30; expected 9 to 21"
base::Status BadField(std::string_view field, uint64_t found,
                      const std::string& expected) {
  return base::FailedPreconditionError(
      "the qcow2 header's " + std::string(field) + " is " + Number(found) +
      "; expected " + expected);
}

base::Status CutShort(const std::string& what, uint64_t offset,
                      uint64_t file_size) {
  return base::DataLossError("the qcow2 file is cut short: " + what +
                             " lies at " + Number(offset) +
                             ", the file ends at " + Number(file_size));
}

base::Status Misaligned(const std::string& what, uint64_t offset,
                        uint64_t cluster_size) {
  return base::FailedPreconditionError(
      "the qcow2 file is not sane: " + what + " lies at " + Number(offset) +
      "; expected a multiple of the cluster size " + Number(cluster_size));
}

// A table that takes `size` bytes from `offset` must be aligned, lie behind the
// header and end within the file.
base::Status CheckTable(const std::string& what, uint64_t offset, uint64_t size,
                        const Qcow2Header& header, uint64_t file_size) {
  if (offset == 0 || offset % header.cluster_size() != 0) {
    return Misaligned(what, offset, header.cluster_size());
  }
  if (offset >= file_size || size > file_size - offset) {
    return CutShort(what + " of " + Number(size) + " bytes", offset, file_size);
  }
  return base::OkStatus();
}

// ---- The header.

base::Status CheckFeatures(Bytes head) {
  const uint64_t features = LoadBigEndian<uint64_t>(head, 72);
  if (features & kExternalData) {
    return base::FailedPreconditionError(
        "the qcow2 keeps its data in an external file, which would be read on "
        "this node; expected a self-contained image: flatten it with 'qemu-img "
        "convert -O qcow2'");
  }
  if (const uint64_t unknown = features & ~kKnownFeatures) {
    return base::FailedPreconditionError(
        "the qcow2 needs incompatible feature bit " +
        Number(static_cast<uint64_t>(std::countr_zero(unknown))) +
        ", which this version does not know; expected bits 0 to 4");
  }
  if (features & kCorrupt) {
    return base::FailedPreconditionError(
        "the qcow2 is marked corrupt; mend it with 'qemu-img check -r all' or "
        "fetch it from elsewhere");
  }
  return base::OkStatus();
}

base::Status CheckCompression(Bytes head, uint32_t header_length) {
  const uint64_t features = LoadBigEndian<uint64_t>(head, 72);
  const uint8_t type =
      header_length > kHeaderBytesV3 ? std::to_integer<uint8_t>(head[104]) : 0;
  if (type > 1)
    return BadField("compression type", type, "0 (zlib) or 1 (zstd)");
  if ((type != 0) != ((features & kCompressionType) != 0)) {
    return base::FailedPreconditionError(
        "the qcow2 header contradicts itself: compression type " +
        Number(type) + (type != 0 ? " without" : " with") +
        " its incompatible feature bit 3");
  }
  return base::OkStatus();
}

base::Status CheckBackingFile(Bytes head) {
  const uint64_t offset = LoadBigEndian<uint64_t>(head, 8);
  const uint32_t size = LoadBigEndian<uint32_t>(head, 16);
  if (offset == 0 && size == 0) return base::OkStatus();
  std::string name = "(its name is not in the header)";
  if (offset < head.size() && size <= head.size() - offset &&
      size <= kMaxBackingNameBytes) {
    name = Quote(head.subspan(static_cast<size_t>(offset), size), 200);
  }
  return base::FailedPreconditionError(
      "the qcow2 needs the backing file " + name +
      ", which would be read on this node; expected a self-contained image: "
      "flatten it with 'qemu-img convert -O qcow2'");
}

// The extensions follow the fixed fields, to the end of the first cluster at
// most. QEMU rejects one that is larger than what is left, so do we.
base::Status CheckExtensions(Bytes head, uint64_t offset,
                             uint64_t cluster_size) {
  const uint64_t end = std::min<uint64_t>(head.size(), cluster_size);
  while (offset + 8 <= end) {
    const size_t at = static_cast<size_t>(offset);
    const uint32_t type = LoadBigEndian<uint32_t>(head, at);
    const uint32_t length = LoadBigEndian<uint32_t>(head, at + 4);
    if (type == kExtensionEnd) return base::OkStatus();
    if (type == kExtensionExternalData) {
      return base::FailedPreconditionError(
          "the qcow2 names an external data file, which would be read on this "
          "node; expected a self-contained image: flatten it with 'qemu-img "
          "convert -O qcow2'");
    }
    if (type == kExtensionEncryption) {
      return base::FailedPreconditionError(
          "the qcow2 has an encryption header; expected a plain image");
    }
    if (length > cluster_size - offset - 8) {
      return base::FailedPreconditionError(
          "the qcow2 header extension at " + Number(offset) + " takes " +
          Number(length) +
          " bytes; expected it to end within the first cluster "
          "of " +
          Number(cluster_size) + " bytes");
    }
    offset += 8 + (uint64_t{length} + 7) / 8 * 8;
  }
  return base::OkStatus();
}

base::Status CheckGeometry(const Qcow2Header& header) {
  if (header.virtual_size == 0 ||
      header.virtual_size >
          static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return BadField("virtual size", header.virtual_size, "1 to 2^63 - 1 bytes");
  }
  if (header.l1_entries > kMaxL1Bytes / 8) {
    return BadField("L1 size", header.l1_entries,
                    "at most " + Number(kMaxL1Bytes / 8) + " entries");
  }
  const uint64_t l2_entries =
      header.cluster_size() / (header.extended_l2 ? 16 : 8);
  const uint64_t bytes_per_l1_entry = header.cluster_size() * l2_entries;
  const uint64_t needed = (header.virtual_size - 1) / bytes_per_l1_entry + 1;
  if (header.l1_entries < needed) {
    return BadField("L1 size", header.l1_entries,
                    "at least " + Number(needed) + " entries for " +
                        Number(header.virtual_size) + " bytes");
  }
  if (header.refcount_clusters == 0 ||
      header.refcount_clusters >
          kMaxRefcountTableBytes / header.cluster_size()) {
    return BadField(
        "refcount table clusters", header.refcount_clusters,
        "1 to " + Number(kMaxRefcountTableBytes / header.cluster_size()));
  }
  if (header.snapshots > kMaxSnapshots) {
    return BadField("number of snapshots", header.snapshots,
                    "at most " + Number(kMaxSnapshots));
  }
  return base::OkStatus();
}

// ---- The tables.

// The refcount table: its blocks must begin within the file. The last cluster
// of a file may be partial, and the table's as well.
base::Status CheckRefcounts(Reader& reader, const Qcow2Header& header,
                            uint64_t file_size) {
  const uint64_t cluster_size = header.cluster_size();
  const uint64_t last_cluster =
      (header.refcount_clusters - uint64_t{1}) * cluster_size;
  BIM_RETURN_IF_ERROR(CheckTable("the refcount table", header.refcount_offset,
                                 last_cluster + 8, header, file_size));
  const uint64_t size =
      std::min(last_cluster + cluster_size, file_size - header.refcount_offset);
  std::vector<std::byte> piece;
  for (uint64_t done = 0; done < size; done += piece.size()) {
    piece.resize(static_cast<size_t>(std::min<uint64_t>(size - done, kPiece)));
    BIM_RETURN_IF_ERROR(
        ReadFully(reader, header.refcount_offset + done, piece));
    for (size_t i = 0; i + 8 <= piece.size(); i += 8) {
      const uint64_t offset =
          LoadBigEndian<uint64_t>(piece, i) & kRefcountOffsetMask;
      if (offset == 0) continue;
      if (offset % cluster_size != 0) {
        return Misaligned("a refcount block", offset, cluster_size);
      }
      if (offset >= file_size) {
        return CutShort("a refcount block", offset, file_size);
      }
    }
  }
  return base::OkStatus();
}

// The snapshot table, which QEMU reads when it opens the image. What the
// snapshots hold is theirs: only the active disk is served.
base::Status CheckSnapshots(Reader& reader, const Qcow2Header& header,
                            uint64_t file_size) {
  if (header.snapshots == 0) return base::OkStatus();
  BIM_RETURN_IF_ERROR(CheckTable("the snapshot table", header.snapshots_offset,
                                 header.snapshots * kSnapshotHeaderBytes,
                                 header, file_size));
  std::byte entry[kSnapshotHeaderBytes];
  uint64_t offset = header.snapshots_offset;
  for (uint32_t i = 0; i < header.snapshots; ++i) {
    if (offset > file_size || file_size - offset < sizeof(entry)) {
      return CutShort("snapshot " + Number(i), offset, file_size);
    }
    BIM_RETURN_IF_ERROR(ReadFully(reader, offset, entry));
    const uint64_t l1_offset = LoadBigEndian<uint64_t>(entry, 0);
    const uint64_t l1_entries = LoadBigEndian<uint32_t>(entry, 8);
    const uint32_t extra = LoadBigEndian<uint32_t>(entry, 36);
    if (l1_entries > kMaxL1Bytes / 8 || extra > kMaxSnapshotExtraBytes) {
      return base::FailedPreconditionError(
          "the qcow2 file is not sane: snapshot " + Number(i) + " has " +
          Number(l1_entries) + " L1 entries and " + Number(extra) +
          " bytes of extra data; expected at most " + Number(kMaxL1Bytes / 8) +
          " and " + Number(kMaxSnapshotExtraBytes));
    }
    if (l1_entries > 0) {
      BIM_RETURN_IF_ERROR(CheckTable("the L1 table of snapshot " + Number(i),
                                     l1_offset, l1_entries * 8, header,
                                     file_size));
    }
    const uint64_t end = offset + sizeof(entry) + extra +
                         LoadBigEndian<uint16_t>(entry, 12) +
                         LoadBigEndian<uint16_t>(entry, 14);
    if (end > file_size) {
      return CutShort("the end of snapshot " + Number(i), end, file_size);
    }
    offset = (end + 7) / 8 * 8;
    if (offset - header.snapshots_offset > kMaxSnapshotTableBytes) {
      return base::FailedPreconditionError(
          "the qcow2 file is not sane: its snapshot table takes more than " +
          Number(kMaxSnapshotTableBytes) + " bytes");
    }
  }
  return base::OkStatus();
}

// The offsets of the L2 tables, ascending. Two entries that share a table are
// how a small file would cost a reader any amount of work: no writer does that.
base::Result<std::vector<uint64_t>> ReadL1(Reader& reader,
                                           const Qcow2Header& header,
                                           uint64_t file_size) {
  const uint64_t size = header.l1_entries * uint64_t{8};
  BIM_RETURN_IF_ERROR(
      CheckTable("the L1 table", header.l1_offset, size, header, file_size));
  const uint64_t most =
      std::min<uint64_t>(header.l1_entries, file_size / header.cluster_size());
  std::vector<uint64_t> tables;
  tables.reserve(static_cast<size_t>(most));
  std::vector<std::byte> piece;
  for (uint64_t done = 0; done < size; done += piece.size()) {
    piece.resize(static_cast<size_t>(std::min<uint64_t>(size - done, kPiece)));
    BIM_RETURN_IF_ERROR(ReadFully(reader, header.l1_offset + done, piece));
    for (size_t i = 0; i < piece.size(); i += 8) {
      const uint64_t offset = LoadBigEndian<uint64_t>(piece, i) & kOffsetMask;
      if (offset == 0) continue;
      BIM_RETURN_IF_ERROR(CheckTable("an L2 table", offset,
                                     header.cluster_size(), header, file_size));
      if (tables.size() == most) {
        return base::FailedPreconditionError(
            "the qcow2 file is not sane: its L1 table names more L2 tables "
            "than the file has clusters");
      }
      tables.push_back(offset);
    }
  }
  std::sort(tables.begin(), tables.end());
  const auto twice = std::adjacent_find(tables.begin(), tables.end());
  if (twice != tables.end()) {
    return base::FailedPreconditionError(
        "the qcow2 file is not sane: the L2 table at " + Number(*twice) +
        " is used twice; expected each L1 entry to have its own");
  }
  return tables;
}

// Every cluster that the entries of (a part of) an L2 table use.
base::Status CheckL2Entries(Bytes entries, const Qcow2Header& header,
                            uint64_t file_size) {
  const uint64_t cluster_size = header.cluster_size();
  const uint64_t compressed_mask =
      (uint64_t{1} << (62 - (header.cluster_bits - 8))) - 1;
  const size_t entry_size = header.extended_l2 ? 16 : 8;
  for (size_t i = 0; i + entry_size <= entries.size(); i += entry_size) {
    const uint64_t entry = LoadBigEndian<uint64_t>(entries, i);
    if (entry & kCompressed) {
      const uint64_t offset = entry & compressed_mask;
      if (offset >= file_size) {
        return CutShort("a compressed cluster", offset, file_size);
      }
      continue;
    }
    const uint64_t offset = entry & kOffsetMask;
    if (header.version < 3 && (entry & kReadsAsZero)) {
      return base::FailedPreconditionError(
          "the qcow2 file is not sane: a version 2 image has a zero cluster; "
          "expected them in version 3 only");
    }
    if (header.extended_l2) {
      const uint64_t bitmap = LoadBigEndian<uint64_t>(entries, i + 8);
      const uint32_t allocated = static_cast<uint32_t>(bitmap);
      const uint32_t zero = static_cast<uint32_t>(bitmap >> 32);
      if ((allocated & zero) != 0 || (offset == 0 && allocated != 0)) {
        return base::FailedPreconditionError(
            "the qcow2 file is not sane: the subclusters of the cluster at " +
            Number(offset) + " are marked both allocated and not");
      }
    }
    if (offset == 0) continue;
    if (offset % cluster_size != 0) {
      return Misaligned("a cluster", offset, cluster_size);
    }
    if (offset >= file_size) return CutShort("a cluster", offset, file_size);
  }
  return base::OkStatus();
}

// Reads the tables in the order of the file, so that no byte is read twice:
// small tables that lie close together come with one read.
base::Status CheckL2Tables(Reader& reader, const Qcow2Header& header,
                           const std::vector<uint64_t>& tables,
                           uint64_t file_size) {
  const uint64_t cluster_size = header.cluster_size();
  std::vector<std::byte> piece;
  uint64_t piece_offset = 0;
  const uint64_t step = std::min<uint64_t>(cluster_size, kPiece);
  for (const uint64_t table : tables) {
    for (uint64_t at = table; at < table + cluster_size; at += step) {
      if (at + step > piece_offset + piece.size()) {
        piece.resize(
            static_cast<size_t>(std::min<uint64_t>(file_size - at, kPiece)));
        piece_offset = at;
        BIM_RETURN_IF_ERROR(ReadFully(reader, at, piece));
      }
      BIM_RETURN_IF_ERROR(CheckL2Entries(
          Bytes(piece).subspan(static_cast<size_t>(at - piece_offset),
                               static_cast<size_t>(step)),
          header, file_size));
    }
  }
  return base::OkStatus();
}

}  // namespace

bool IsQcow(Bytes head) { return HasAt(head, 0, "QFI\xFB"sv); }

base::Result<Qcow2Header> ParseQcow2Header(Bytes head) {
  const auto too_short = [&](size_t needed) {
    return base::DataLossError(
        "the qcow2 file is cut short: its header takes " + Number(needed) +
        " bytes, the file ends at " + Number(head.size()));
  };
  if (head.size() < kHeaderBytesV2) return too_short(kHeaderBytesV2);
  Qcow2Header header;
  header.version = LoadBigEndian<uint32_t>(head, 4);
  if (header.version != 2 && header.version != 3) {
    return BadField("version", header.version, "2 or 3");
  }
  uint32_t header_length = kHeaderBytesV2;
  if (header.version == 3) {
    if (head.size() < kQcow2HeaderBytes) return too_short(kQcow2HeaderBytes);
    BIM_RETURN_IF_ERROR(CheckFeatures(head));
    header.extended_l2 = (LoadBigEndian<uint64_t>(head, 72) & kExtendedL2) != 0;
    header_length = LoadBigEndian<uint32_t>(head, 100);
  }
  BIM_RETURN_IF_ERROR(CheckBackingFile(head));
  if (const uint32_t method = LoadBigEndian<uint32_t>(head, 32); method != 0) {
    return base::FailedPreconditionError(
        "the qcow2 is encrypted (crypt_method " + Number(method) +
        "); expected a plain image: decrypt it with 'qemu-img convert'");
  }

  header.cluster_bits = LoadBigEndian<uint32_t>(head, 20);
  const uint32_t min_bits =
      header.extended_l2 ? kMinExtendedL2ClusterBits : kMinClusterBits;
  if (header.cluster_bits < min_bits || header.cluster_bits > kMaxClusterBits) {
    return BadField("cluster_bits", header.cluster_bits,
                    Number(min_bits) + " to " + Number(kMaxClusterBits));
  }
  if (header.version == 3) {
    if (header_length < kHeaderBytesV3 || header_length % 8 != 0 ||
        header_length > header.cluster_size()) {
      return BadField("length", header_length,
                      "a multiple of 8 from " + Number(kHeaderBytesV3) +
                          " to the cluster size " +
                          Number(header.cluster_size()));
    }
    if (const uint32_t order = LoadBigEndian<uint32_t>(head, 96); order > 6) {
      return BadField("refcount_order", order, "0 to 6");
    }
    BIM_RETURN_IF_ERROR(CheckCompression(head, header_length));
  }
  header.virtual_size = LoadBigEndian<uint64_t>(head, 24);
  header.l1_entries = LoadBigEndian<uint32_t>(head, 36);
  header.l1_offset = LoadBigEndian<uint64_t>(head, 40);
  header.refcount_offset = LoadBigEndian<uint64_t>(head, 48);
  header.refcount_clusters = LoadBigEndian<uint32_t>(head, 56);
  header.snapshots = LoadBigEndian<uint32_t>(head, 60);
  header.snapshots_offset = LoadBigEndian<uint64_t>(head, 64);
  BIM_RETURN_IF_ERROR(CheckGeometry(header));
  BIM_RETURN_IF_ERROR(
      CheckExtensions(head, header_length, header.cluster_size()));
  return header;
}

base::Result<Qcow2Header> CheckQcow2(Reader& reader, uint64_t file_size) {
  // The header's extensions may take the whole first cluster, whatever its
  // size says.
  std::vector<std::byte> head(static_cast<size_t>(
      std::min<uint64_t>(file_size, uint64_t{1} << kMaxClusterBits)));
  BIM_RETURN_IF_ERROR(ReadFully(reader, 0, head));
  BIM_ASSIGN_OR_RETURN(const Qcow2Header header, ParseQcow2Header(head));

  BIM_RETURN_IF_ERROR(CheckRefcounts(reader, header, file_size));
  BIM_RETURN_IF_ERROR(CheckSnapshots(reader, header, file_size));
  BIM_ASSIGN_OR_RETURN(const std::vector<uint64_t> tables,
                       ReadL1(reader, header, file_size));
  BIM_RETURN_IF_ERROR(CheckL2Tables(reader, header, tables, file_size));
  return header;
}

base::Status ReadFully(Reader& reader, uint64_t offset,
                       std::span<std::byte> out) {
  base::Result<size_t> read = reader.ReadAt(offset, out);
  if (!read.ok()) return read.status().WithContext("cannot tell the format");
  if (*read < out.size()) {
    return base::DataLossError("the file ends at " + Number(offset + *read) +
                               "; expected " + Number(out.size()) +
                               " bytes from " + Number(offset) +
                               ": it shrank while it was read");
  }
  return base::OkStatus();
}

}  // namespace bim::image
