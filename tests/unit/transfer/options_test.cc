#include "pkg/transfer/options.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>

#include <random>

namespace bim::transfer {
namespace {

using base::Code;

Network Parsed(std::string_view text) {
  const auto network = Network::Parse(text);
  EXPECT_TRUE(network.ok()) << network.status().ToString();
  return network.ok() ? *network : Network{};
}

void ExpectRefused(std::string_view text, std::string_view message) {
  const auto network = Network::Parse(text);
  ASSERT_EQ(network.status().code(), Code::kInvalidArgument) << text;
  EXPECT_NE(network.status().message().find(message), std::string::npos)
      << network.status().message() << " lacks: " << message;
  EXPECT_NE(network.status().message().find(text), std::string::npos)
      << network.status().message();
}

TEST(NetworkTest, V4) {
  const Network ten = Parsed("10.0.0.0/8");
  EXPECT_EQ(ten.prefix, 104);
  EXPECT_EQ(ten.address, (std::array<uint8_t, 16>{0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                                  0xff, 0xff, 10, 0, 0, 0}));
  for (const char* ip : {"10.0.0.0", "10.255.255.255", "10.1.2.3",
                         "::ffff:10.1.2.3", "::ffff:a01:203"}) {
    EXPECT_TRUE(ten.Contains(ip)) << ip;
  }
  for (const char* ip : {"9.255.255.255", "11.0.0.0", "0.0.0.0", "::10.1.2.3",
                         "::ffff:11.0.0.0", "a00::", "::1", "::"}) {
    EXPECT_FALSE(ten.Contains(ip)) << ip;
  }
}

TEST(NetworkTest, V6) {
  const Network local = Parsed("fd00::/8");
  EXPECT_EQ(local.prefix, 8);
  EXPECT_TRUE(local.Contains("fd00::"));
  EXPECT_TRUE(local.Contains("FD12:3456::1"));
  EXPECT_TRUE(local.Contains("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
  EXPECT_TRUE(local.Contains("fd00::1.2.3.4"));
  for (const char* ip : {"fc00::", "fe00::", "::", "10.0.0.1", "253.0.0.0"}) {
    EXPECT_FALSE(local.Contains(ip)) << ip;
  }
}

TEST(NetworkTest, AnAddressAlone) {
  for (const char* ip :
       {"10.1.2.3", "0.0.0.0", "255.255.255.255", "::", "::1", "fe80::1:2"}) {
    const Network network = Parsed(ip);
    EXPECT_EQ(network.prefix, 128);
    EXPECT_TRUE(network.Contains(ip));
    EXPECT_FALSE(network.Contains("10.1.2.4"));
    EXPECT_FALSE(network.Contains("::2"));
  }
  EXPECT_EQ(Parsed("10.1.2.3/32").address, Parsed("10.1.2.3").address);
  EXPECT_EQ(Parsed("10.1.2.3/32").prefix, 128);
  EXPECT_EQ(Parsed("::1/128").prefix, 128);
}

TEST(NetworkTest, Everything) {
  const Network v4 = Parsed("0.0.0.0/0");
  EXPECT_EQ(v4.prefix, 96);
  EXPECT_TRUE(v4.Contains("0.0.0.0"));
  EXPECT_TRUE(v4.Contains("255.255.255.255"));
  EXPECT_FALSE(v4.Contains("::1"));
  EXPECT_FALSE(v4.Contains("fd00::1"));
  // All 128 bits: IPv4, which is mapped into them, included.
  const Network all = Parsed("::/0");
  EXPECT_EQ(all.prefix, 0);
  EXPECT_TRUE(all.Contains("fd00::1"));
  EXPECT_TRUE(all.Contains("1.2.3.4"));
  EXPECT_FALSE(all.Contains("nonsense"));
}

TEST(NetworkTest, MappedNotationIsTheV4Network) {
  const Network mapped = Parsed("::ffff:10.0.0.0/104");
  EXPECT_EQ(mapped.address, Parsed("10.0.0.0/8").address);
  EXPECT_EQ(mapped.prefix, 104);
  EXPECT_TRUE(mapped.Contains("10.1.2.3"));
}

TEST(NetworkTest, HostBitsAreRefusedAndTheNetworkNamed) {
  ExpectRefused("10.1.2.3/8", "the network is '10.0.0.0/8'");
  ExpectRefused("10.1.2.3/8", "the address alone '10.1.2.3'");
  ExpectRefused("10.0.0.1/31", "the network is '10.0.0.0/31'");
  ExpectRefused("192.168.129.0/17", "the network is '192.168.128.0/17'");
  ExpectRefused("1.2.3.4/0", "the network is '0.0.0.0/0'");
  ExpectRefused("fd00::1/8", "the network is 'fd00::/8'");
  ExpectRefused("fd00:1:2:3:4::/64", "the network is 'fd00:1:2:3::/64'");
  ExpectRefused("::1/0", "the network is '::/0'");
  ExpectRefused("::3/127", "the network is '::2/127'");
}

TEST(NetworkTest, EveryPrefixAndBit) {
  std::mt19937 random(1);
  for (const int family : {AF_INET, AF_INET6}) {
    const int most = family == AF_INET ? 32 : 128;
    const auto text = [&](const std::array<uint8_t, 16>& bytes) {
      char out[INET6_ADDRSTRLEN];
      return std::string(::inet_ntop(family, bytes.data(), out, sizeof(out)));
    };
    for (int prefix = 0; prefix <= most; ++prefix) {
      // A random network, spelled bit by bit.
      std::array<uint8_t, 16> bytes{};
      for (int bit = 0; bit < prefix; ++bit) {
        if (random() % 2 == 0) bytes[bit / 8] |= 0x80 >> bit % 8;
      }
      if (prefix > 0) bytes[0] |= 0x80;  // no mapped IPv4 by chance
      const std::string name = text(bytes) + "/" + std::to_string(prefix);
      const Network network = Parsed(name);
      ASSERT_TRUE(network.Contains(text(bytes))) << name;
      for (int bit = 0; bit < most; ++bit) {
        std::array<uint8_t, 16> other = bytes;
        other[bit / 8] ^= 0x80 >> bit % 8;
        ASSERT_EQ(network.Contains(text(other)), bit >= prefix)
            << name << " " << text(other);
        if (bit >= prefix) {
          ExpectRefused(text(other) + "/" + std::to_string(prefix),
                        "the network is '" + name + "'");
        }
      }
    }
  }
}

TEST(NetworkTest, BadPrefixes) {
  for (const char* prefix :
       {"", "33", "128", "-1", "-0", "+8", " 8", "8 ", "08", "00", "8a", "a",
        "0x8", "8.0", "8/8", "255.0.0.0", "99999999999999999999"}) {
    ExpectRefused("10.0.0.0/" + std::string(prefix),
                  "expected a number from 0 to 32 behind the '/', found '" +
                      std::string(prefix) + "'");
  }
  for (const char* prefix : {"", "129", "-1", "/", "1000", "0128"}) {
    ExpectRefused("fd00::/" + std::string(prefix),
                  "expected a number from 0 to 128 behind the '/'");
  }
}

TEST(NetworkTest, Garbage) {
  for (const char* text :
       {"",
        "/",
        "/8",
        "10",
        "10.0.0",
        "10.0.0.0.0",
        "10.0.0.256",
        "010.0.0.1",
        "10.0.0.0 ",
        " 10.0.0.0",
        "10.0.0.0\n",
        "0x0a.0.0.1",
        "localhost",
        "host.example/8",
        "::1::",
        ":",
        ":::",
        "1:2:3:4:5:6:7:8:9",
        "g::",
        "[::1]",
        "fe80::1%eth0",
        "fe80::1%1/64",
        "12345::",
        "*",
        "10.*",
        "1:2:3:4:5:6:7:8:9:1:2:3:4:5:6:7:8:9:1:2:3:4:5:6:7:8:9:1:2:3"}) {
    ExpectRefused(text, "is no network");
    EXPECT_FALSE(Parsed("::/0").Contains(text)) << text;
  }
  using std::string_view_literals::operator""sv;
  for (const std::string_view text :
       {"10.0.0.1\0"sv, "10.0.0.1\0.evil"sv, "\0"sv, "::1\0"sv}) {
    EXPECT_FALSE(Network::Parse(text).ok());
    EXPECT_FALSE(Parsed("::/0").Contains(text));
  }
  EXPECT_FALSE(Network::Parse("10.0.0.0/8\0"sv).ok());
  EXPECT_FALSE(Network::Parse("10.0.0.0\0/8"sv).ok());
  // No address, though a network.
  EXPECT_FALSE(Parsed("::/0").Contains("10.0.0.0/8"));
}

}  // namespace
}  // namespace bim::transfer
