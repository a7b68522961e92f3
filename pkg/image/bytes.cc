#include "pkg/image/bytes.h"

#include <cstring>

namespace bim::image {
namespace {

uint8_t At(Bytes bytes, size_t i) { return std::to_integer<uint8_t>(bytes[i]); }

bool IsSpace(uint8_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// Precondition: Utf8Length(bytes) == length.
uint32_t CodePoint(Bytes bytes, size_t length) {
  if (length == 1) return At(bytes, 0);
  uint32_t code = At(bytes, 0) & (0x7Fu >> length);
  for (size_t i = 1; i < length; ++i) code = code << 6 | (At(bytes, i) & 0x3F);
  return code;
}

// Control characters, and what makes a terminal show another text than there
// is: line separators, directional marks, zero width, the byte order mark.
bool Prints(uint32_t code) {
  if (code < 0x20 || (code >= 0x7F && code < 0xA0)) return false;
  if (code >= 0x200B && code <= 0x200F) return false;
  if (code >= 0x2028 && code <= 0x202E) return false;
  if (code >= 0x2060 && code <= 0x206F) return false;
  return code != 0xFEFF;
}

}  // namespace

bool HasAt(Bytes bytes, size_t offset, std::string_view text) {
  if (offset > bytes.size() || text.size() > bytes.size() - offset) {
    return false;
  }
  return std::memcmp(bytes.data() + offset, text.data(), text.size()) == 0;
}

size_t Utf8Length(Bytes bytes) {
  if (bytes.empty()) return 0;
  const uint8_t lead = At(bytes, 0);
  size_t length = 0;
  if (lead < 0x80) {
    return 1;
  } else if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
  } else {
    return 0;
  }
  if (bytes.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((At(bytes, i) & 0xC0) != 0x80) return 0;
  }
  const uint8_t second = At(bytes, 1);
  if (lead == 0xE0 && second < 0xA0) return 0;  // overlong
  if (lead == 0xED && second > 0x9F) return 0;  // surrogate
  if (lead == 0xF0 && second < 0x90) return 0;  // overlong
  if (lead == 0xF4 && second > 0x8F) return 0;  // beyond U+10FFFF
  return length;
}

std::string Quote(Bytes bytes, size_t max_characters) {
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string out = "\"";
  if (HasAt(bytes, 0, "\xEF\xBB\xBF")) bytes = bytes.subspan(3);
  bool at_start = true;
  bool pending_space = false;
  for (size_t characters = 0; !bytes.empty();) {
    if (IsSpace(At(bytes, 0))) {
      pending_space = !at_start;
      bytes = bytes.subspan(1);
      continue;
    }
    if (characters + (pending_space ? 1 : 0) >= max_characters) {
      out += "...";
      break;
    }
    if (pending_space) {
      out += ' ';
      ++characters;
    }
    at_start = pending_space = false;
    const size_t length = Utf8Length(bytes);
    const bool prints = length > 0 && Prints(CodePoint(bytes, length));
    for (size_t i = 0; i < (length == 0 ? 1 : length); ++i) {
      const uint8_t c = At(bytes, i);
      if (prints) {
        out += static_cast<char>(c);
      } else {
        out += "\\x";
        out += kHex[c >> 4];
        out += kHex[c & 15];
      }
    }
    ++characters;
    bytes = bytes.subspan(length == 0 ? 1 : length);
  }
  return out + '"';
}

std::string Quote(std::string_view text, size_t max_characters) {
  return Quote(std::as_bytes(std::span(text.data(), text.size())),
               max_characters);
}

}  // namespace bim::image
