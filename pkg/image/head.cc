// What is not a disk image, told by its first bytes.
#include <algorithm>
#include <array>
#include <optional>
#include <string>

#include "pkg/image/bytes.h"
#include "pkg/image/probe.h"
#include "pkg/image/qcow2.h"

namespace bim::image {
namespace {

using std::string_view_literals::operator""sv;

constexpr size_t kSectorSize = 512;

uint8_t At(Bytes bytes, size_t i) { return std::to_integer<uint8_t>(bytes[i]); }

// ---- Archives and compressed files.

// RFC 1952: deflate is the only method, three flag bits are reserved.
bool IsGzip(Bytes b) {
  return b.size() >= 10 && HasAt(b, 0, "\x1F\x8B\x08"sv) &&
         (At(b, 3) & 0xE0) == 0;
}

// The magic, then a block's magic (the digits of pi) or, if the content is
// empty, the end's (those of its square root).
bool IsBzip2(Bytes b) {
  return HasAt(b, 0, "BZh"sv) && b.size() > 3 && At(b, 3) >= '1' &&
         At(b, 3) <= '9' &&
         (HasAt(b, 4, "\x31\x41\x59\x26\x53\x59"sv) ||
          HasAt(b, 4, "\x17\x72\x45\x38\x50\x90"sv));
}

// RFC 8878: bit 3 of the frame header's descriptor is reserved.
bool IsZstd(Bytes b) {
  return b.size() > 4 && HasAt(b, 0, "\x28\xB5\x2F\xFD"sv) &&
         (At(b, 4) & 0x08) == 0;
}

// The frame of lz4_Frame_format.md: version 01 and its reserved bits; or the
// older format of `lz4 -l`, whose first block is never larger than 8 MiB packs.
bool IsLz4(Bytes b) {
  if (b.size() >= 7 && HasAt(b, 0, "\x04\x22\x4D\x18"sv)) {
    return (At(b, 4) & 0xC2) == 0x40 && (At(b, 5) & 0x8F) == 0 &&
           (At(b, 5) >> 4) >= 4;
  }
  return b.size() >= 8 && HasAt(b, 0, "\x02\x21\x4C\x18"sv) &&
         LoadLittleEndian<uint32_t>(b, 4) <= (9u << 20);
}

// Both zstd and lz4 may begin with frames to skip (pzstd writes one): what
// follows them tells.
std::optional<std::string_view> SkippedInto(Bytes b) {
  for (int frames = 0; frames < 8 && b.size() >= 8; ++frames) {
    if ((LoadLittleEndian<uint32_t>(b, 0) & 0xFFFFFFF0u) != 0x184D2A50u) break;
    const uint64_t skip = 8 + uint64_t{LoadLittleEndian<uint32_t>(b, 4)};
    if (skip >= b.size()) break;
    b = b.subspan(static_cast<size_t>(skip));
    if (IsZstd(b)) return "zstd";
    if (IsLz4(b)) return "lz4";
  }
  return std::nullopt;
}

// A member's header with a version (6.3 is the last) and method that exist, or
// the end record of an empty archive.
bool IsZip(Bytes b) {
  if (b.size() >= 30 && HasAt(b, 0, "PK\3\4"sv)) {
    return At(b, 4) <= 63 && LoadLittleEndian<uint16_t>(b, 8) <= 99;
  }
  return HasAt(b, 0, "PK\5\6\0\0\0\0"sv);
}

// POSIX ustar and GNU tar alike: the magic, and the header's checksum with its
// own field taken as spaces. Some writers summed signed characters.
bool IsTar(Bytes b) {
  if (b.size() < kSectorSize || !HasAt(b, 257, "ustar"sv)) return false;
  int32_t with_unsigned = 0;
  int32_t with_signed = 0;
  for (size_t i = 0; i < kSectorSize; ++i) {
    const uint8_t c = i >= 148 && i < 156 ? ' ' : At(b, i);
    with_unsigned += c;
    with_signed += static_cast<int8_t>(c);
  }
  size_t i = 148;
  while (i < 156 && At(b, i) == ' ') ++i;
  int32_t written = 0;
  size_t digits = 0;
  for (; i < 156 && At(b, i) >= '0' && At(b, i) <= '7'; ++i, ++digits) {
    written = written * 8 + (At(b, i) - '0');
  }
  return digits > 0 && (written == with_unsigned || written == with_signed);
}

std::optional<std::string> ArchiveRefusal(Bytes b) {
  constexpr std::string_view kCompressed =
      "-compressed file; expected qcow2, raw or iso: decompress it first";
  constexpr std::string_view kArchive =
      " archive; expected qcow2, raw or iso: unpack it first";
  const auto compressed = [&](std::string_view name) {
    return "the source sent a " + std::string(name) + std::string(kCompressed);
  };
  const auto archive = [&](std::string_view name) {
    return "the source sent a " + std::string(name) + std::string(kArchive);
  };
  if (IsGzip(b)) return compressed("gzip");
  if (HasAt(b, 0, "\xFD\x37zXZ\0"sv)) {
    return "the source sent an xz" + std::string(kCompressed);
  }
  if (IsZstd(b)) return compressed("zstd");
  if (IsBzip2(b)) return compressed("bzip2");
  if (IsLz4(b)) return "the source sent an lz4" + std::string(kCompressed);
  if (const auto kind = SkippedInto(b)) {
    return *kind == "zstd"
               ? compressed(*kind)
               : "the source sent an lz4" + std::string(kCompressed);
  }
  if (IsZip(b)) return archive("zip");
  if (HasAt(b, 0, "7z\xBC\xAF\x27\x1C"sv)) return archive("7z");
  if (HasAt(b, 0, "Rar!\x1A\x07\0"sv) || HasAt(b, 0, "Rar!\x1A\x07\1\0"sv)) {
    return archive("rar");
  }
  if (IsTar(b)) return archive("tar");
  return std::nullopt;
}

// ---- Disk images of others.

// QEMU takes a text for a VMDK descriptor, whose extents may name any file of
// the node, if "version=1" to 3 stands after lines of comment and blanks: so
// such a file must not pass as raw.
bool IsVmdkDescriptor(Bytes b) {
  if (HasAt(b, 0, "# Disk DescriptorFile"sv)) return true;
  const size_t end = std::min(b.size(), size_t{4096});
  for (size_t i = 0; i < end;) {
    if (At(b, i) == '#') {
      while (i < end && At(b, i) != '\n') ++i;
      if (i < end) ++i;
    } else if (At(b, i) == ' ' || At(b, i) == '\r' || At(b, i) == '\n') {
      ++i;
    } else {
      for (std::string_view line :
           {"version=1"sv, "version=2"sv, "version=3"sv}) {
        if (HasAt(b, i, line) && (HasAt(b, i + line.size(), "\n"sv) ||
                                  HasAt(b, i + line.size(), "\r\n"sv))) {
          return true;
        }
      }
      return false;
    }
  }
  return false;
}

bool IsQed(Bytes b) {
  if (b.size() < 16 || !HasAt(b, 0, "QED\0"sv)) return false;
  const uint32_t cluster = LoadLittleEndian<uint32_t>(b, 4);
  return cluster >= (1u << 12) && cluster <= (1u << 26) &&
         (cluster & (cluster - 1)) == 0;
}

std::optional<std::string_view> ForeignFormat(Bytes b) {
  if (b.size() >= 8 && (HasAt(b, 0, "KDMV"sv) || HasAt(b, 0, "COWD"sv)) &&
      LoadLittleEndian<uint32_t>(b, 4) - 1 < 3) {
    return "a VMDK";
  }
  if (IsVmdkDescriptor(b)) return "a VMDK";
  if (HasAt(b, 0, "vhdxfile"sv)) return "a VHDX";
  if (HasAt(b, 0, "<<< "sv) && b.size() >= 0x44 &&
      LoadLittleEndian<uint32_t>(b, 0x40) == 0xBEDA107F) {
    return "a VDI";
  }
  // The copy of the footer that only dynamic and differencing disks begin with.
  if (HasAt(b, 0, "conectix"sv)) return "a VHD";
  if (IsQed(b)) return "a QED";
  if (IsQcow(b) && b.size() >= 8 && LoadBigEndian<uint32_t>(b, 4) == 1) {
    return "a qcow (version 1)";
  }
  if (HasAt(b, 0, "WithoutFreeSpace"sv) || HasAt(b, 0, "WithouFreSpacExt"sv)) {
    return "a Parallels";
  }
  return std::nullopt;
}

// ---- Text.

enum class Text { kNone, kUtf8, kEightBit };

// True if `rest` is the begin of a character whose end is not there.
bool IsCutCharacter(Bytes rest) {
  const uint8_t lead = At(rest, 0);
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  return lead >= 0xC2 && lead <= 0xF4 && rest.size() < length &&
         std::all_of(rest.begin() + 1, rest.end(), [](std::byte b) {
           return (b & std::byte{0xC0}) == std::byte{0x80};
         });
}

// kEightBit is what old proxies send: no control characters, but not UTF-8.
// `may_be_cut` allows the last character to go on behind the end of `b`.
Text Classify(Bytes b, bool may_be_cut) {
  if (b.empty()) return Text::kNone;
  Text kind = Text::kUtf8;
  for (size_t i = 0; i < b.size();) {
    const uint8_t c = At(b, i);
    if ((c < 0x20 && c != '\t' && c != '\n' && c != '\r' && c != '\f') ||
        c == 0x7F) {
      return Text::kNone;
    }
    const size_t length = Utf8Length(b.subspan(i));
    if (length == 0) {
      if (may_be_cut && IsCutCharacter(b.subspan(i))) break;
      kind = Text::kEightBit;
    }
    i += length == 0 ? 1 : length;
  }
  return kind;
}

std::string_view SkipSpace(std::string_view text) {
  const size_t at = text.find_first_not_of(" \t\r\n\f");
  return at == text.npos ? std::string_view() : text.substr(at);
}

char Lower(char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; }

bool IsLetter(char c) { return Lower(c) >= 'a' && Lower(c) <= 'z'; }

bool StartsWithIgnoringCase(std::string_view text, std::string_view lower) {
  return text.size() >= lower.size() &&
         std::equal(lower.begin(), lower.end(), text.begin(),
                    [](char l, char t) { return l == Lower(t); });
}

// The name of the tag that `text` begins with, lower case; empty if none does
// or it does not end within `text`.
std::string TagName(std::string_view text) {
  if (text.size() < 3 || text[0] != '<' ||
      !(IsLetter(text[1]) || text[1] == '_')) {
    return {};
  }
  std::string name;
  for (char c : text.substr(1)) {
    if (c == '>' || c == '/' || c == ' ' || c == '\t' || c == '\r' ||
        c == '\n' || c == '\f') {
      return name;
    }
    if (!IsLetter(c) && !(c >= '0' && c <= '9') && c != '_' && c != '-' &&
        c != ':' && c != '.') {
      return {};
    }
    name += Lower(c);
  }
  return {};
}

bool LooksLikeHtml(std::string_view text) {
  if (StartsWithIgnoringCase(text, "<!doctype html") ||
      text.substr(0, 4) == "<!--") {
    return true;
  }
  constexpr std::array kTags = {
      "html"sv, "head"sv,  "body"sv, "script"sv, "title"sv,  "meta"sv,
      "link"sv, "style"sv, "div"sv,  "table"sv,  "center"sv, "iframe"sv,
      "font"sv, "br"sv,    "h1"sv,   "h2"sv,     "h3"sv,     "p"sv,
      "a"sv,    "b"sv,     "pre"sv,  "span"sv};
  const std::string tag = TagName(text);
  return std::find(kTags.begin(), kTags.end(), tag) != kTags.end();
}

bool LooksLikeXml(std::string_view text) {
  return text.substr(0, 5) == "<?xml" ||
         StartsWithIgnoringCase(text, "<!doctype ") || !TagName(text).empty();
}

// `is_all` says that nothing follows `text`.
bool LooksLikeJson(std::string_view text, bool is_all) {
  if (text.empty()) return false;
  const std::string_view rest = SkipSpace(text.substr(1));
  if (text[0] == '{')
    return !rest.empty() && (rest[0] == '"' || rest[0] == '}');
  if (text[0] == '[') {
    if (rest.empty()) return false;
    if (std::string_view("{[\"]-0123456789").find(rest[0]) != rest.npos) {
      return true;
    }
    return rest.starts_with("true") || rest.starts_with("false") ||
           rest.starts_with("null");
  }
  if (text[0] != '"') return false;
  // A bare string is a document of its own only if it is all there is.
  for (size_t i = 1; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == '"') {
      return is_all && SkipSpace(text.substr(i + 1)).empty();
    }
  }
  return false;
}

std::optional<std::string> TextRefusal(Bytes head, bool is_whole_file) {
  const Bytes window = head.first(std::min(head.size(), kSectorSize));
  const bool window_is_all = is_whole_file && window.size() == head.size();
  const Text kind = Classify(window, !window_is_all);
  if (kind == Text::kNone) return std::nullopt;
  std::string_view text(reinterpret_cast<const char*>(window.data()),
                        window.size());
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  text = SkipSpace(text);
  const auto refusal = [&](std::string_view what) {
    return "the source sent " + std::string(what) +
           ", not a disk image: " + Quote(head);
  };
  if (LooksLikeHtml(text)) return refusal("an HTML page");
  if (LooksLikeXml(text)) return refusal("an XML document");
  if (kind != Text::kUtf8) return std::nullopt;
  if (LooksLikeJson(text, window_is_all)) return refusal("a JSON document");
  if (is_whole_file && head.size() % kSectorSize != 0 &&
      Classify(head, /*may_be_cut=*/false) == Text::kUtf8) {
    return refusal("a text of " + std::to_string(head.size()) + " bytes");
  }
  return std::nullopt;
}

std::optional<std::string> Refusal(Bytes head, bool is_whole_file) {
  if (head.empty()) {
    if (!is_whole_file) return std::nullopt;
    return "the source sent nothing; expected a qcow2, raw or iso image";
  }
  if (auto archive = ArchiveRefusal(head)) return archive;
  if (const auto format = ForeignFormat(head)) {
    return "the source sent " + std::string(*format) +
           " image; expected qcow2, raw or iso: convert it with 'qemu-img "
           "convert -O qcow2'";
  }
  if (auto text = TextRefusal(head, is_whole_file)) return text;
  // A header of which a part is still to come is judged by Probe.
  if (IsQcow(head) && head.size() >= kQcow2HeaderBytes) {
    const auto header = ParseQcow2Header(head);
    if (!header.ok()) return header.status().message();
  }
  return std::nullopt;
}

}  // namespace

base::Status CheckHead(Bytes head, bool is_whole_file,
                       std::string_view content_type) {
  std::optional<std::string> refusal = Refusal(head, is_whole_file);
  if (!refusal) return base::OkStatus();
  if (!content_type.empty()) {
    *refusal += " (Content-Type: " + Quote(content_type) + ")";
  }
  return base::FailedPreconditionError(*std::move(refusal));
}

}  // namespace bim::image
