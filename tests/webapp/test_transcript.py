import torch

from amrg.webapp.transcript import Transcript


def grown(outlined, *tokens):
    """A transcript of tokens, the attention of each being its number, three positions and more."""
    transcript, text = Transcript(outlined), ""
    for number, token in enumerate(tokens):
        text += token
        transcript.add(text, torch.full((4 + number,), float(number)))
    return transcript


def means(transcript):
    return [transcript.attention(number, 3).tolist() for number in range(len(transcript.sentences))]


def test_a_token_belongs_to_the_sentence_it_ends_in():
    transcript = grown(False, "Heart", " is", " 1", ".", "5", " cm.", " Clear", " lungs.")
    assert transcript.sentences == ["Heart is 1.5 cm.", "Clear lungs."]
    assert means(transcript) == [[2.5] * 3, [6.5] * 3]


def test_a_token_may_open_several_sentences():
    transcript = grown(False, "One.", " Two. Three", ".")
    assert transcript.sentences == ["One.", "Two.", "Three."]
    assert means(transcript) == [[0.0] * 3, [1.0] * 3, [1.5] * 3]


def test_the_plan_is_no_sentence():
    transcript = grown(True, "edema", ".", " Report:", " Wet", ".")
    assert (transcript.plan, transcript.sentences) == ("edema.", ["Wet."])
    assert means(transcript) == [[3.5] * 3]


def test_a_plan_without_a_report_was_the_report():
    transcript = grown(True, "Clear", " lungs.", " Normal.")
    assert transcript.sentences == []
    transcript.close()
    assert (transcript.plan, transcript.sentences) == ("", ["Clear lungs.", "Normal."])
    assert means(transcript) == [[0.5] * 3, [2.0] * 3]


def test_nothing_is_written():
    transcript = grown(True)
    transcript.close()
    assert transcript.sentences == []


def test_the_impression_begins_behind_the_mark():
    transcript, text = Transcript(False, separate=True), ""
    begins = []
    for number, token in enumerate(["Wet", ".", " Imp", "ression:", " Ede", "ma", ". Stable."]):
        text += token
        transcript.add(text, torch.full((4 + number,), float(number)))
        begins.append(transcript.impression)
    assert begins == [None, None, None, None, 1, 1, 1]
    assert transcript.sentences == ["Wet.", "Edema.", "Stable."]
    assert len(means(transcript)) == 3
