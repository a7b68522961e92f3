#include "pkg/base/digest.h"

#include <gtest/gtest.h>

#include <vector>

namespace bim::base {
namespace {

constexpr DigestAlgorithm kBoth[] = {DigestAlgorithm::kSha256,
                                     DigestAlgorithm::kSha512};

TEST(DigestTest, SizesAndNames) {
  EXPECT_EQ(DigestSize(DigestAlgorithm::kSha256), 32u);
  EXPECT_EQ(DigestSize(DigestAlgorithm::kSha512), 64u);
  EXPECT_EQ(DigestName(DigestAlgorithm::kSha256), "SHA-256");
  EXPECT_EQ(DigestName(DigestAlgorithm::kSha512), "SHA-512");
  EXPECT_EQ(Digest().Hex(), std::string(128, '0'));
}

TEST(DigestTest, EveryByteThroughHexAndBack) {
  for (DigestAlgorithm algorithm : kBoth) {
    for (int value = 0; value < 256; ++value) {
      std::vector<std::byte> bytes(DigestSize(algorithm),
                                   static_cast<std::byte>(value));
      bytes[0] = std::byte{1};
      const Digest digest(algorithm, bytes);
      const auto back = Digest::FromHex(algorithm, digest.Hex());
      ASSERT_TRUE(back.ok());
      EXPECT_EQ(*back, digest);
      std::string upper = digest.Hex();
      for (char& c : upper) c = static_cast<char>(std::toupper(c));
      EXPECT_EQ(*Digest::FromHex(algorithm, upper), digest);
    }
  }
}

TEST(DigestTest, EveryOtherLengthIsRefused) {
  for (DigestAlgorithm algorithm : kBoth) {
    const size_t want = DigestSize(algorithm) * 2;
    for (size_t length = 0; length < 200; ++length) {
      const auto got = Digest::FromHex(algorithm, std::string(length, 'a'));
      EXPECT_EQ(got.ok(), length == want);
      if (got.ok()) continue;
      EXPECT_EQ(got.status().code(), Code::kInvalidArgument);
      EXPECT_NE(got.status().message().find(std::to_string(length)),
                std::string::npos);
      EXPECT_NE(got.status().message().find(std::to_string(want)),
                std::string::npos);
    }
  }
}

TEST(DigestTest, EveryOtherCharacterIsRefusedAtItsPlace) {
  const std::string hex_digits = "0123456789abcdefABCDEF";
  for (int value = 0; value < 256; ++value) {
    const char c = static_cast<char>(value);
    for (size_t at : {size_t{0}, size_t{1}, size_t{62}, size_t{63}}) {
      std::string hex(64, '0');
      hex[at] = c;
      const auto got = Digest::FromHex(DigestAlgorithm::kSha256, hex);
      EXPECT_EQ(got.ok(), hex_digits.find(c) != std::string::npos) << value;
      if (!got.ok()) {
        EXPECT_NE(
            got.status().message().find("character " + std::to_string(at + 1)),
            std::string::npos)
            << got.status().message();
      }
    }
  }
}

TEST(DigestTest, Base64) {
  // As `sha512sum | xxd -r -p | base64` and the same of sha256sum say.
  EXPECT_EQ(
      Digest::FromHex(DigestAlgorithm::kSha512,
                      "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee6"
                      "4b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e"
                      "2a9ac94fa54ca49f")
          ->Base64(),
      "3a81oZNherrMQXNJriBBMRLm+k6JqX6iCp7u5ktV05ohkpkqJ0/BqDa6PCOj/uu9RU1EI2Q8"
      "6A4qmslPpUyknw==");
  EXPECT_EQ(Digest::FromHex(DigestAlgorithm::kSha256,
                            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb4"
                            "10ff61f20015ad")
                ->Base64(),
            "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
  EXPECT_EQ(Digest().Base64(), std::string(86, 'A') + "==");
}

TEST(DigestTest, OtherAlgorithmsDiffer) {
  EXPECT_NE(*Digest::FromHex(DigestAlgorithm::kSha256, std::string(64, '0')),
            Digest());
}

}  // namespace
}  // namespace bim::base
