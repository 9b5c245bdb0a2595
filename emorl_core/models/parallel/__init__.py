"""One model in parts, over the processes of one machine: tensor parallel."""
