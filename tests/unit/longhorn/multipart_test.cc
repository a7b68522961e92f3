#include "pkg/longhorn/multipart.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace bim::longhorn {
namespace {

using base::Code;
using base::Status;
using ::testing::HasSubstr;

std::span<const std::byte> Bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

struct Outcome {
  Status status;
  std::string data;
};

// The body in pieces of at most `step` bytes.
Outcome Read(std::string_view body, size_t step,
             const std::string& boundary = "b") {
  Outcome outcome;
  auto reader = MultipartReader::Make(
      "multipart/form-data; boundary=" + boundary, "chunk",
      [&](std::span<const std::byte> data) {
        outcome.data.append(reinterpret_cast<const char*>(data.data()),
                            data.size());
        return base::OkStatus();
      });
  EXPECT_TRUE(reader.ok());
  while (!body.empty() && outcome.status.ok()) {
    const auto piece = body.substr(0, step);
    outcome.status = reader->Add(Bytes(piece));
    body.remove_prefix(piece.size());
  }
  if (outcome.status.ok()) outcome.status = reader->End();
  return outcome;
}

std::string Part(const std::string& name, const std::string& data) {
  return "--b\r\nContent-Disposition: form-data; name=\"" + name +
         "\"; filename=\"x\"\r\nContent-Type: "
         "application/octet-stream\r\n\r\n" +
         data + "\r\n";
}

TEST(MultipartTest, AnyPieces) {
  // Data that looks like boundaries all over.
  const std::string hard =
      "\r\n--\r\n--a\r\n\r\n--\r\r\n-\r\n--B--b\r\n--\r\n-b\r\n\r\n\r";
  for (const std::string& data :
       {std::string("data"), std::string(), hard, hard + hard,
        std::string(3000, '\0'), std::string("\r\n")}) {
    const std::string body = "preamble\r\n" + Part("other", "no") +
                             Part("chunk", data) + Part("more", "neither") +
                             "--b--\r\nepilogue";
    for (size_t step = 1; step <= body.size(); step += step < 40 ? 1 : 97) {
      const Outcome read = Read(body, step);
      ASSERT_TRUE(read.status.ok()) << step << read.status.ToString();
      ASSERT_EQ(read.data, data) << step;
    }
  }
}

TEST(MultipartTest, RandomPieces) {
  std::mt19937 random(4);
  for (int round = 0; round < 300; ++round) {
    std::string data;
    for (size_t n = random() % 400; n > 0; --n) data += "\r\n-bx"[random() % 5];
    // The boundary itself must not be in it.
    for (size_t at; (at = data.find("\r\n--b")) != data.npos;) data[at] = 'x';
    const std::string body = Part("chunk", data) + "--b--";
    auto taken = std::string();
    auto reader = MultipartReader::Make(
        "Multipart/Form-Data ; charset=x; BOUNDARY=\"b\"", "chunk",
        [&](std::span<const std::byte> bytes) {
          taken.append(reinterpret_cast<const char*>(bytes.data()),
                       bytes.size());
          return base::OkStatus();
        });
    ASSERT_TRUE(reader.ok());
    for (size_t at = 0; at < body.size();) {
      const size_t step = 1 + random() % 30;
      ASSERT_TRUE(
          reader->Add(Bytes(std::string_view(body).substr(at, step))).ok());
      at += step;
    }
    EXPECT_TRUE(reader->End().ok());
    EXPECT_EQ(taken, data);
  }
}

TEST(MultipartTest, PaddingBehindTheBoundary) {
  const Outcome read = Read(
      "--b \t\r\ncontent-disposition: form-data; NAME=chunk\r\n\r\nx\r\n--b--",
      3);
  EXPECT_TRUE(read.status.ok()) << read.status.ToString();
  EXPECT_EQ(read.data, "x");
}

TEST(MultipartTest, WhatIsNoSuchBody) {
  const auto said = [](const std::string& body, const std::string& words) {
    for (const size_t step : {size_t{1}, size_t{7}, body.size() + 1}) {
      const Outcome read = Read(body, step);
      EXPECT_EQ(read.status.code(), Code::kInvalidArgument) << body;
      EXPECT_THAT(read.status.message(), HasSubstr(words));
    }
  };
  said("", "ended before");
  said("hello", "ended before");
  said(Part("chunk", "x"), "ended before");
  said(Part("chunk", "x") + "--b", "ended before");
  said(Part("chunk", "x") + "--b-", "ended before");
  said("--b--", "no part 'chunk'");
  said(Part("other", "x") + "--b--", "no part 'chunk'");
  said("--b\r\n\r\nno name\r\n--b--", "no part 'chunk'");
  said("--bx\r\n" + Part("chunk", "x"), "other text");
  said("--b" + std::string(300, ' ') + "\r\n", "too long");
  said("--b\r\nA: " + std::string(9000, 'x') + "\r\n\r\n", "head of a part");
  said(Part("chunk", "x") + Part("chunk", "y") + "--b--", "twice");
  std::string many;
  for (int i = 0; i < 65; ++i) many += Part("other", "");
  said(many + "--b--", "more than 64 parts");
}

TEST(MultipartTest, TheSinkMayRefuse) {
  auto reader = MultipartReader::Make(
      "multipart/form-data; boundary=b", "chunk",
      [](std::span<const std::byte>) { return base::OutOfRangeError("full"); });
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ(reader->Add(Bytes(Part("chunk", std::string(100, 'x')))).code(),
            Code::kOutOfRange);
}

TEST(MultipartTest, ContentTypes) {
  const auto ok = [](std::string_view type) {
    return MultipartReader::Make(type, "chunk",
                                 [](auto) { return base::OkStatus(); })
        .ok();
  };
  EXPECT_TRUE(ok("multipart/form-data; boundary=x"));
  EXPECT_TRUE(ok("multipart/form-data; a=\"q;\\\"boundary=n\"; boundary=x"));
  EXPECT_FALSE(ok(""));
  EXPECT_FALSE(ok("multipart/form-data"));
  EXPECT_FALSE(ok("multipart/form-data; boundary="));
  EXPECT_FALSE(ok("multipart/form-data; boundary=\"x"));
  EXPECT_FALSE(ok("multipart/mixed; boundary=x"));
  EXPECT_FALSE(ok("text/plain; boundary=x"));
  EXPECT_FALSE(ok("multipart/form-data; boundary=\"a\r\nb\""));
  EXPECT_FALSE(ok("multipart/form-data; boundary=" + std::string(71, 'x')));
}

TEST(HeaderParameterTest, Values) {
  EXPECT_EQ(HeaderParameter("form-data; name=\"a\\\"b\"; x=1", "name"), "a\"b");
  EXPECT_EQ(HeaderParameter("form-data; name=\"a;x=2\"; x=1", "x"), "1");
  EXPECT_EQ(HeaderParameter("form-data;flag; x = 1 ;y=2", "x"), "1");
  EXPECT_EQ(HeaderParameter("form-data;flag", "flag"), "");
  EXPECT_EQ(HeaderParameter("x=1", "x"), "");
}

}  // namespace
}  // namespace bim::longhorn
