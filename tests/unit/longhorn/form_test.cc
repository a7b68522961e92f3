#include "pkg/longhorn/form.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>

namespace bim::longhorn {
namespace {

using base::Code;
using ::testing::HasSubstr;

Form Parsed(std::string_view query) {
  auto form = Form::Parse(query);
  EXPECT_TRUE(form.ok()) << form.status().ToString();
  return form.ok() ? *std::move(form) : Form();
}

std::string Escape(int byte, const char* format) {
  char text[8];
  std::snprintf(text, sizeof(text), format, static_cast<unsigned>(byte));
  return text;
}

void ExpectBadlyEncoded(std::string_view query) {
  const auto form = Form::Parse(query);
  EXPECT_EQ(form.status().code(), Code::kInvalidArgument) << query;
  EXPECT_THAT(form.status().message(), HasSubstr("badly encoded")) << query;
}

TEST(FormTest, Parameters) {
  const Form form =
      Parsed("action=download&file-path=/data/x&n=1&action=other");
  EXPECT_EQ(form.Get("action"), "download");
  EXPECT_EQ(form.Get("file-path"), "/data/x");
  EXPECT_EQ(form.Get("n"), "1");
  EXPECT_EQ(form.Get("N"), "");
  EXPECT_EQ(form.Get(""), "");
  EXPECT_EQ(form.Get("actio"), "");
  EXPECT_EQ(*form.Need("action"), "download");
}

TEST(FormTest, WhatIsEmptyIsNotThere) {
  for (const char* query : {"", "&", "&&&", "a", "a=", "a&a=", "=", "&a=&",
                            "b=1", "a%3D1", "aa=1"}) {
    const Form form = Parsed(query);
    EXPECT_EQ(form.Get("a"), "") << query;
    const auto needed = form.Need("a");
    EXPECT_EQ(needed.status().code(), Code::kInvalidArgument) << query;
    EXPECT_EQ(needed.status().message(), "parameter a is missing") << query;
  }
}

TEST(FormTest, TheFirstThatIsNotEmptyCounts) {
  for (const char* query : {"a=1&a=2", "a=&a=1", "a&a=1&a=2", "&&a=1&",
                            "a=1&a=", "%61=1&a=2", "b=3&a=1"}) {
    EXPECT_EQ(Parsed(query).Get("a"), "1") << query;
  }
}

TEST(FormTest, OnlyTheFirstEqualsSeparates) {
  const Form form = Parsed("a=b=c&d==&e=%26f%3D");
  EXPECT_EQ(form.Get("a"), "b=c");
  EXPECT_EQ(form.Get("d"), "=");
  EXPECT_EQ(form.Get("e"), "&f=");
  EXPECT_EQ(form.Get("f"), "");
}

TEST(FormTest, EveryByteEncoded) {
  for (int byte = 0; byte < 256; ++byte) {
    for (const char* format : {"%%%02x", "%%%02X"}) {
      const std::string escaped = Escape(byte, format);
      // Alone, at the end, in between, and in the name.
      for (const std::string& query :
           {"a=" + escaped, "a=x" + escaped, "a=x" + escaped + "y"}) {
        if (byte == 0) {
          ExpectBadlyEncoded(query);
          continue;
        }
        std::string plain = query.substr(2);
        plain.replace(plain.find('%'), 3, 1, static_cast<char>(byte));
        EXPECT_EQ(Parsed(query).Get("a"), plain) << query;
      }
      if (byte == 0) {
        ExpectBadlyEncoded(escaped + "=1");
      } else {
        const std::string name(1, static_cast<char>(byte));
        EXPECT_EQ(Parsed(escaped + "=1").Get(name), "1") << escaped;
      }
    }
  }
}

TEST(FormTest, EveryByteAsItIs) {
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    const std::string query = std::string("a=x") + c + "y";
    if (c == '\0' || c == '%') {
      ExpectBadlyEncoded(query);
    } else if (c == '&') {
      EXPECT_EQ(Parsed(query).Get("a"), "x");
    } else if (c == '+') {
      EXPECT_EQ(Parsed(query).Get("a"), "x y");
    } else {
      EXPECT_EQ(Parsed(query).Get("a"), query.substr(2)) << byte;
    }
  }
  EXPECT_EQ(Parsed("a+b=1").Get("a b"), "1");
  EXPECT_EQ(Parsed("a=%2B+%2b").Get("a"), "+ +");
  // Decoded once.
  EXPECT_EQ(Parsed("a=%2541").Get("a"), "%41");
  EXPECT_EQ(Parsed("a=%252B").Get("a"), "%2B");
}

// Which pairs of bytes behind "%" are digits: exactly those that are.
TEST(FormTest, EveryPairBehindAPercent) {
  const std::string_view digits = "0123456789abcdefABCDEF";
  const auto digit = [&](int byte) {
    return digits.find(static_cast<char>(byte)) != digits.npos;
  };
  for (int high = 0; high < 256; ++high) {
    for (int low = 0; low < 256; ++low) {
      const std::string pair = {static_cast<char>(high),
                                static_cast<char>(low)};
      const bool good = digit(high) && digit(low) && pair != "00";
      EXPECT_EQ(Form::Parse("a=%" + pair).ok(), good) << high << " " << low;
    }
  }
}

TEST(FormTest, BadlyEncoded) {
  for (const char* query :
       {"%", "a=%", "a=%4", "a=1%", "a=1%4", "%=1", "%4=1", "a=%&b=1",
        "a=%4&b=1", "b=1&a=%zz", "a=%%", "a=%%41", "a=%4%31", "a=%+1", "a=%-1",
        "a=% 1", "a=%0x41", "a=%u0041", "a=%00", "a%00b=1",
        // Also where it would not count.
        "a=1&a=%", "%zz", "%zz="}) {
    ExpectBadlyEncoded(query);
  }
  ExpectBadlyEncoded(std::string_view("a=1\0", 4));
  ExpectBadlyEncoded(std::string_view("a\0=1", 4));
}

TEST(FormTest, WhatIsShownIsBoundedAndPlain) {
  const auto form = Form::Parse("a=\n\x1b" + std::string(100'000, 'x') + "%");
  const std::string said = form.status().message();
  EXPECT_LT(said.size(), 200u);
  EXPECT_THAT(said, HasSubstr("a=\\x0a\\x1bxxx"));
  const Form odd = Parsed("p=%0a" + std::string(100'000, '1'));
  for (const std::string& message :
       {odd.Size("p").status().message(), odd.Port("p").status().message()}) {
    EXPECT_LT(message.size(), 200u);
    EXPECT_THAT(message, HasSubstr("'\\x0a111"));
  }
}

TEST(FormTest, AtMost64Parameters) {
  std::string query;
  for (int i = 0; i < 64; ++i) {
    query += "p" + std::to_string(i) + "=" + std::to_string(i) + "&&";
  }
  const Form form = Parsed(query);
  EXPECT_EQ(form.Get("p0"), "0");
  EXPECT_EQ(form.Get("p63"), "63");
  // Repeated and empty ones, too.
  for (const char* more : {"p64=64", "p0=0", "p64=", "p64", "="}) {
    const auto parsed = Form::Parse(query + more);
    EXPECT_EQ(parsed.status().code(), Code::kInvalidArgument) << more;
    EXPECT_EQ(parsed.status().message(),
              "the query has more than 64 parameters");
  }
}

TEST(FormTest, Sizes) {
  const std::pair<const char*, uint64_t> good[] = {
      {"0", 0},
      {"512", 512},
      {"000512", 512},
      {"%35%31%32", 512},
      {"1048576", 1048576},
      {"9223372036854775296", 9223372036854775296u},
      {"18446744073709551104", 18446744073709551104u}};
  for (const auto& [text, size] : good) {
    const auto read = Parsed(std::string("size=") + text).Size("size");
    ASSERT_TRUE(read.ok()) << read.status().ToString();
    EXPECT_EQ(*read, size) << text;
  }
  for (const char* query : {"", "size", "size=", "other=512"}) {
    const auto read = Parsed(query).Size("size");
    ASSERT_TRUE(read.ok()) << query;
    EXPECT_EQ(*read, 0u) << query;
  }
  for (const char* text : {"1", "256", "511", "513", "768", "1000",
                           "9223372036854775807", "18446744073709551615"}) {
    const auto read = Parsed(std::string("size=") + text).Size("size");
    EXPECT_EQ(read.status().code(), Code::kInvalidArgument) << text;
    EXPECT_EQ(read.status().message(),
              std::string("parameter size: expected a multiple of 512, found "
                          "'") +
                  text + "'");
  }
  for (const char* text : {"-512", "%2B512", " 512", "512 ", "512b", "0x200",
                           "512.0", "1e3", "x", "18446744073709551616",
                           "99999999999999999999999999", "%0a512", "5,12"}) {
    const auto read = Parsed(std::string("size=") + text).Size("size");
    EXPECT_EQ(read.status().code(), Code::kInvalidArgument) << text;
    EXPECT_THAT(
        read.status().message(),
        HasSubstr("parameter size: expected a number of bytes, found '"))
        << text;
  }
}

TEST(FormTest, EveryPort) {
  for (uint32_t port = 0; port <= 70'000; ++port) {
    const std::string text = std::to_string(port);
    const auto read = Parsed("port=" + text).Port("port");
    if (port >= 1 && port <= 65535) {
      ASSERT_TRUE(read.ok()) << port;
      ASSERT_EQ(*read, port);
    } else {
      ASSERT_EQ(read.status().code(), Code::kInvalidArgument) << port;
      ASSERT_EQ(read.status().message(),
                "parameter port: expected a port, found '" + text + "'");
    }
  }
}

TEST(FormTest, PortsThatAreNone) {
  for (const char* text : {"-1", "%2B80", "+80", "80+", "80x", "0x50", "8 0",
                           "http", "00", "99999999999999999999", "8000.0"}) {
    const auto read = Parsed(std::string("port=") + text).Port("port");
    EXPECT_EQ(read.status().code(), Code::kInvalidArgument) << text;
  }
  EXPECT_EQ(*Parsed("port=0080").Port("port"), 80);
  for (const char* query : {"", "port", "port=", "Port=80"}) {
    const auto read = Parsed(query).Port("port");
    EXPECT_EQ(read.status().code(), Code::kInvalidArgument) << query;
    EXPECT_EQ(read.status().message(), "parameter port is missing") << query;
  }
}

}  // namespace
}  // namespace bim::longhorn
