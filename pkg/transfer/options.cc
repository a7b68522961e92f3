#include "pkg/transfer/options.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <optional>

namespace bim::transfer {
namespace {

using base::InvalidArgumentError;
using base::Result;

// Bits of ::ffff:0:0/96, under which IPv4 is mapped (RFC 4291 2.5.5.2).
constexpr int kMappedBits = 96;

struct Address {
  std::array<uint8_t, 16> bytes{};
  bool v4 = false;
};

std::optional<Address> ParseAddress(std::string_view text) {
  // inet_pton() ends at the first NUL and would not see what follows.
  if (text.size() >= INET6_ADDRSTRLEN ||
      text.find('\0') != std::string_view::npos) {
    return std::nullopt;
  }
  const std::string terminated(text);
  Address address;
  if (::inet_pton(AF_INET6, terminated.c_str(), address.bytes.data()) == 1) {
    return address;
  }
  address = {.v4 = true};
  address.bytes[10] = address.bytes[11] = 0xff;
  if (::inet_pton(AF_INET, terminated.c_str(), &address.bytes[12]) == 1) {
    return address;
  }
  return std::nullopt;
}

std::string AddressText(const Address& address) {
  char text[INET6_ADDRSTRLEN] = {};
  ::inet_ntop(address.v4 ? AF_INET : AF_INET6,
              address.bytes.data() + (address.v4 ? 12 : 0), text, sizeof(text));
  return text;
}

// The first `bits` bits of `bytes`, zeros behind them.
std::array<uint8_t, 16> Masked(std::array<uint8_t, 16> bytes, int bits) {
  for (int i = 0; i < 16; ++i) {
    const int kept = std::clamp(bits - 8 * i, 0, 8);
    bytes[i] &= static_cast<uint8_t>(0xff00 >> kept);
  }
  return bytes;
}

}  // namespace

Result<Network> Network::Parse(std::string_view text) {
  const size_t slash = text.find('/');
  const auto address = ParseAddress(text.substr(0, slash));
  if (!address) {
    return InvalidArgumentError(
        "'" + std::string(text) +
        "' is no network: expected an address, or one with a prefix, such as "
        "'10.0.0.0/8' or 'fd00::/8'");
  }
  Network network{.address = address->bytes, .prefix = 128};
  if (slash == std::string_view::npos) return network;

  const std::string_view digits = text.substr(slash + 1);
  const int most = address->v4 ? 128 - kMappedBits : 128;
  int bits = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), bits);
  if (error != std::errc() || end != digits.data() + digits.size() ||
      bits < 0 || bits > most || digits[0] == '-' ||
      (digits[0] == '0' && digits.size() > 1)) {
    return InvalidArgumentError(
        "'" + std::string(text) +
        "' is no network: expected a number from 0 to " + std::to_string(most) +
        " behind the '/', found '" + std::string(digits) + "'");
  }
  network.prefix = address->v4 ? bits + kMappedBits : bits;
  const Address first{.bytes = Masked(address->bytes, network.prefix),
                      .v4 = address->v4};
  if (first.bytes != address->bytes) {
    return InvalidArgumentError(
        "'" + std::string(text) + "' has bits set behind the first " +
        std::to_string(bits) + ": the network is '" + AddressText(first) + "/" +
        std::to_string(bits) + "', the address alone '" +
        AddressText(*address) + "'");
  }
  return network;
}

bool Network::Contains(std::string_view ip) const {
  const auto other = ParseAddress(ip);
  return other && Masked(other->bytes, prefix) == Masked(address, prefix);
}

}  // namespace bim::transfer
