#include "pkg/image/probe.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "pkg/image/bytes.h"
#include "pkg/image/qcow2.h"

namespace bim::image {
namespace {

using std::string_view_literals::operator""sv;

constexpr uint64_t kSectorSize = 512;
constexpr size_t kHeadSize = 64 << 10;

// ECMA-119: the descriptors begin at logical sector 16 of 2048 bytes.
constexpr uint64_t kIsoDescriptorOffset = 32768;
constexpr size_t kIsoDescriptorSize = 2048;

bool IsIso(Bytes head) {
  return HasAt(head, kIsoDescriptorOffset, "\1CD001\1"sv) &&
         head.size() >= kIsoDescriptorOffset + kIsoDescriptorSize;
}

// The descriptor holds each number twice, in both byte orders. Where the two
// disagree some tool has edited one of them, and neither proves a thing.
base::Status CheckIso(Bytes head, uint64_t file_size) {
  const Bytes d = head.subspan(kIsoDescriptorOffset, kIsoDescriptorSize);
  const uint32_t blocks = LoadLittleEndian<uint32_t>(d, 80);
  const uint16_t block_size = LoadLittleEndian<uint16_t>(d, 128);
  if (blocks != LoadBigEndian<uint32_t>(d, 84) ||
      block_size != LoadBigEndian<uint16_t>(d, 130)) {
    return base::OkStatus();
  }
  const uint64_t declared = uint64_t{blocks} * block_size;
  if (declared > file_size) {
    return base::DataLossError("the iso file is cut short: its volume takes " +
                               std::to_string(declared) +
                               " bytes, the file ends at " +
                               std::to_string(file_size) + "; fetch it again");
  }
  return base::OkStatus();
}

}  // namespace

std::string_view FormatName(Format format) {
  switch (format) {
    case Format::kRaw:
      return "raw";
    case Format::kQcow2:
      return "qcow2";
    case Format::kIso:
      return "iso";
  }
  return "unknown";
}

base::Result<ImageInfo> Probe(Reader& reader, uint64_t file_size) {
  if (file_size == 0) {
    return base::FailedPreconditionError(
        "the file is empty; expected a qcow2, raw or iso image");
  }
  std::vector<std::byte> head(
      static_cast<size_t>(std::min<uint64_t>(file_size, kHeadSize)));
  BIM_RETURN_IF_ERROR(ReadFully(reader, 0, head));
  // Before the size: "an HTML page" tells more than "size 1000".
  BIM_RETURN_IF_ERROR(CheckHead(head, head.size() == file_size, ""));
  if (file_size % kSectorSize != 0) {
    return base::FailedPreconditionError(
        "size " + std::to_string(file_size) +
        " is not a multiple of 512: the file is cut short or not a disk image");
  }
  if (IsQcow(head)) {
    BIM_ASSIGN_OR_RETURN(const Qcow2Header header,
                         CheckQcow2(reader, file_size));
    return ImageInfo{Format::kQcow2, header.virtual_size, file_size};
  }
  if (IsIso(head)) {
    BIM_RETURN_IF_ERROR(CheckIso(head, file_size));
    return ImageInfo{Format::kIso, file_size, file_size};
  }
  return ImageInfo{Format::kRaw, file_size, file_size};
}

}  // namespace bim::image
